import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from ray_head import BIN

from twostream_ray.data.shards.shards import ShardSet

pytestmark = pytest.mark.own_cluster

ROOT = Path(__file__).resolve().parents[1]


def submit(script: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--", sys.executable, script, *arguments]
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
        starting = "No available agent" in done.stdout + done.stderr or "Failed to connect" in done.stdout + done.stderr
        if not starting or time.monotonic() > deadline:
            return done
        time.sleep(2)


@pytest.mark.timeout(500)
def test_a_submitted_training_goes_on_without_its_submitter_and_can_be_followed_again(
    head: dict[str, str], shard_set: ShardSet, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "twostream_ray", "submit", "train", "--config", "demo", "--name", "submitted"]
    command += ["--data.shards", shard_set.uri, "--data.transforms.crop_px", "48", "--training.epochs", "1"]
    command += ["--model.spatial.width", "4", "--model.temporal.width", "4", "--training.global_batch", "16"]
    # How many workers is nothing to the job; each takes seconds to start.
    command += ["--workers.num_workers", "1"]
    command += ["--storage", str(tmp_path / "runs"), "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with subprocess.Popen(command, env=head, cwd=tmp_path, text=True, stdout=PIPE, stderr=PIPE) as first:
        assert first.stdout is not None
        seen = list(itertools.takewhile(lambda line: not line.startswith("Running entrypoint"), first.stdout))
        first.send_signal(signal.SIGINT)
        rest, complaints = first.communicate(timeout=60)
    assert first.returncode == 130 and not complaints, complaints
    goes_on = rest.strip().splitlines()[-1]
    assert "continues without this command: `twostream jobs logs train-submitted-" in goes_on, seen
    follow = ["jobs", "logs", goes_on.split()[2]]
    done = subprocess.run([*command[:3], *follow], env=head, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "Running entrypoint" in done.stdout
    assert "20 of 20 clips" in done.stdout
    assert "registered as two-stream: version 1 is champion" in done.stdout
    assert (tmp_path / "runs/submitted/report.json").is_file()


def test_a_job_that_ray_runs_in_a_copy_of_its_working_directory_keeps_nothing_there(
    head: dict[str, str], shard_set: ShardSet
) -> None:
    done = submit("jobs/train.py", "--name", "lost", "--data.shards", shard_set.uri, environment=head)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "storage would be runs in the copy of the job's working directory" in said, said
