import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.own_cluster


def twostream(*arguments: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twostream_ray", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=200)


def test_a_missing_and_a_wrong_token_are_one_line_each(head: dict[str, str], tmp_path: Path) -> None:
    stranger = {key: value for key, value in head.items() if key != "RAY_AUTH_TOKEN"} | {"HOME": str(tmp_path)}
    done = twostream("jobs", environment=stranger, folder=tmp_path)
    assert done.returncode == 2 and "requires a token, and none is set: put it in RAY_AUTH_TOKEN" in done.stderr
    done = twostream("jobs", environment={**stranger, "RAY_AUTH_TOKEN": "of-no-cluster"}, folder=tmp_path)
    assert done.returncode == 2 and "rejects the token of RAY_AUTH_TOKEN" in done.stderr


def test_gpus_that_the_cluster_lacks_are_refused_before_anything_is_sent(head: dict[str, str], tmp_path: Path) -> None:
    done = twostream("submit", "promote", "--driver_gpus", "1", environment=head, folder=tmp_path)
    assert done.returncode == 2 and "wants 1 GPUs, the Ray cluster" in done.stderr and "has 0 on 1 nodes" in done.stderr
    assert not done.stdout


def test_a_job_that_finds_no_room_is_explained_and_listed(head: dict[str, str], tmp_path: Path) -> None:
    large = ("submit", "promote", "--driver_cpus", "50", "--follow", "false", "--job", "large")
    assert twostream(*large, environment=head, folder=tmp_path).returncode == 0
    said = twostream("jobs", "why", "large", environment=head, folder=tmp_path).stdout
    assert "its process wants 1 x (50 CPU), the cluster has 1 x (2 CPU, 0 GPU" in said
    assert "no node will ever have" in said
    assert "large" in twostream("jobs", environment=head, folder=tmp_path).stdout
    again = twostream(*large, environment=head, folder=tmp_path)
    assert again.returncode == 2 and "has a job 'large' already: choose another --job" in again.stderr
    stopped = twostream("jobs", "stop", "large", "--stop_seconds", "0", environment=head, folder=tmp_path)
    assert "is PENDING: it ends as soon as it starts" in stopped.stdout
    unknown = twostream("jobs", "logs", "nobody", environment=head, folder=tmp_path)
    assert unknown.returncode == 2 and "has no job 'nobody': `twostream jobs` lists" in unknown.stderr


@pytest.mark.timeout(400)
def test_a_submitted_verb_ends_with_its_own_exit_code_and_last_error_also_resumed_with_its_own_files(
    head: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("split: nonsense\n")
    submit = ("submit", "promote", "--config", "mine.yaml", "--tracking.uri", f"sqlite:///{tmp_path}/none.db")
    first = twostream(*submit, "--job", "again", environment=head, folder=tmp_path)
    (tmp_path / "mine.yaml").unlink()
    for done in (first, twostream("jobs", "resume", "again", environment=head, folder=tmp_path)):
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Running entrypoint for job again" in done.stdout and "twostream promote: error: " in done.stdout
        (line,) = done.stderr.strip().splitlines()
        assert "error: the job again" in line and "failed with exit code 2: MLflow's database" in line
