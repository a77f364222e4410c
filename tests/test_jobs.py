import subprocess
import sys
import time
from pathlib import Path

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
def test_a_submitted_job_trains_on_a_cluster_with_token_authentication(
    head: dict[str, str], shard_set: ShardSet, tmp_path: Path
) -> None:
    done = submit(
        "jobs/train.py",
        *("--config", "demo", "--name", "submitted", "--data.shards", shard_set.uri),
        *("--data.transforms.crop_px", "48", "--training.epochs", "1", "--model.spatial.width", "4"),
        *("--model.temporal.width", "4", "--training.global_batch", "16", "--storage", str(tmp_path / "runs")),
        *("--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"),
        environment=head,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "20 of 20 clips" in done.stdout
    assert "registered as two-stream: version 1 is champion" in done.stdout
    assert (tmp_path / "runs/submitted/report.json").is_file()


def test_a_submitted_job_keeps_nothing_in_the_copy_of_its_working_directory(
    head: dict[str, str], shard_set: ShardSet, tmp_path: Path
) -> None:
    given = ("jobs/train.py", "--name", "lost", "--data.shards", shard_set.uri)
    done = submit(*given, environment={**head, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "storage would be runs in the copy of the job's working directory" in said, said
    done = submit(*given, "--storage", str(tmp_path), environment={**head, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "tracking.uri would be mlflow.db in the copy" in said, said
    assert "--runtime-env-json" in said


def test_a_client_without_the_token_is_turned_away(head: dict[str, str]) -> None:
    stranger = {key: value for key, value in head.items() if key != "RAY_AUTH_TOKEN"} | {"HOME": "/nonexistent"}
    done = submit("jobs/train.py", "--help", environment=stranger)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
