import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twostream_ray.data.shards.shards import ShardSet

pytestmark = pytest.mark.own_cluster

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port outside 10002..19999, which Ray's workers use."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port >= 20000:
            return port


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of its own as `ray start --head` makes it, with token authentication; gives a client's environment."""
    folder = tmp_path_factory.mktemp("head")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-0123456789",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    dashboard = free_port()
    # Ray Train's clean-up actors would ask the newest cluster of this machine.
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    command = ["start", "--head", "--block", "--num-cpus", "2", "--port", str(free_port())]
    command += ["--dashboard-port", str(dashboard), "--ray-client-server-port", str(free_port())]
    # The agent's default port may be taken by another cluster on this machine; without an agent no job starts.
    command += ["--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port())]
    # Not pytest's folder: the paths of its sockets would be too long.
    temporary = tempfile.mkdtemp(prefix="ray-")
    process = subprocess.Popen(
        [str(BIN / "ray"), *command, "--temp-dir", temporary],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield environment
    finally:
        # Asked politely, the head would wait half a minute for its processes.
        subprocess.run(["pkill", "-KILL", "--session", str(process.pid)], check=True)
        process.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


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
