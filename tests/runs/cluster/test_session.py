"""What a run of the command does when Ray's processes, the whole group, or the driver is ended."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from listening import foreign_addresses, ports_of, post_job

from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.runs.cluster.private_cluster import remove_abandoned

pytestmark = [pytest.mark.soak, pytest.mark.own_cluster]


def training(shard_set: ShardSet, folder: Path, *, verb: str = "train") -> subprocess.Popen[str]:
    """A training of 500 epochs, or a search of such."""
    recipe = "demo" if verb == "train" else "demo_search"
    arguments = ["--config", recipe, "--name", "ended", "--data.shards", shard_set.uri]
    arguments += ["--data.transforms.crop_px", "48", "--training.epochs", "500", "--training.global_batch", "16"]
    arguments += ["--storage", str(folder / "runs"), "--tracking.uri", f"sqlite:///{folder}/mlflow.db"]
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("twostream")), verb, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        start_new_session=True,
    )


def reach(process: subprocess.Popen[str], start: str) -> str:
    """Read lines until one begins so."""
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start) or start in line)


def descendants(process: subprocess.Popen[str]) -> list[Any]:
    return list(psutil.Process(process.pid).children(recursive=True))


def named(processes: list[Any], name: str) -> Any:
    return next(one for one in processes if one.name() == name)


def folders() -> set[Path]:
    """Folders of private clusters that are there."""
    return set(Path(tempfile.gettempdir()).glob("ts-*"))


ENDINGS: dict[str, tuple[Callable[[subprocess.Popen[str], list[Any]], None], int, str]] = {
    "raylet": (lambda process, all_: named(all_, "raylet").kill(), 2, "Ray's process raylet of this run was ended by"),
    "gcs": (
        lambda process, all_: named(all_, "gcs_server").kill(),
        2,
        "Ray's process gcs_server of this run was ended",
    ),
    "group": (lambda process, all_: os.killpg(process.pid, signal.SIGTERM), 130, "interrupted; what was finished"),
    "job": (lambda process, all_: _terminate([psutil.Process(process.pid), *all_]), 130, "interrupted; what was fini"),
}


def _terminate(processes: list[Any]) -> None:
    for one in processes:
        one.terminate()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("what", ENDINGS)
def test_an_end_of_rays_processes_or_of_the_group_is_one_line_leaves_nothing_and_the_run_goes_on(
    what: str, shard_set: ShardSet, tmp_path: Path
) -> None:
    before = folders()
    process = training(shard_set, tmp_path)
    reach(process, "epoch 2/500")
    below = descendants(process)
    end, code, line = ENDINGS[what]
    end(process, below)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    assert [text for text in errors.splitlines() if text] == [errors.strip()], "one line"
    assert errors.startswith(f"twostream train: error: {line}")
    assert "(raylet)" not in output
    time.sleep(1)
    assert not [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    process = training(shard_set, tmp_path)
    again = reach(process, " at epoch ")
    process.terminate()
    process.communicate(timeout=100)
    assert int(again.split(" at epoch ")[1].split(",")[0]) >= 2
    assert not folders() - before, "nothing left"


@pytest.mark.timeout(400)
def test_a_killed_driver_leaves_nothing_beyond_the_next_start(shard_set: ShardSet, tmp_path: Path) -> None:
    before = folders()
    process = training(shard_set, tmp_path)
    reach(process, "epoch 2/500")
    below = descendants(process)
    process.kill()
    process.communicate()
    process = training(shard_set, tmp_path)
    reach(process, " at epoch ")
    assert not [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    process.terminate()
    process.communicate(timeout=100)
    assert not folders() - before


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("verb", "begun"), [("train", "epoch 1/500"), ("tune", ", 1 epochs")])
def test_no_process_of_a_run_listens_beyond_loopback_or_takes_a_job_without_the_token(
    verb: str, begun: str, shard_set: ShardSet, tmp_path: Path
) -> None:
    assert foreign_addresses()
    process = training(shard_set, tmp_path, verb=verb)
    try:
        reach(process, begun)
        listening = ports_of(process.pid)
        assert len(listening) > 5
        assert not [one for one in listening if one[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
        answers = {port: post_job(port) for _, _, port in listening}
        assert 401 in answers.values(), "the agent's port of jobs was among them"
        assert not [port for port, answer in answers.items() if 200 <= answer < 400], answers
    finally:
        process.terminate()
        process.communicate(timeout=100)


FAILING = """
import sys
from twostream_ray.runs.cluster.session import ray_session
try:
    with ray_session():
        raise ValueError("of the user's own")
except ValueError:
    print("failed", flush=True)
sys.stdin.read()
print("still here")
"""


def test_a_process_that_outlives_its_failed_cluster_survives_the_next_start() -> None:
    base = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_TMPDIR": str(base)},
    )
    try:
        reach(process, "failed")
        (folder,) = base.glob("ts-*")
        remove_abandoned(base)
        assert folder.exists(), "its logs are open in a process that lives"
        output, _ = process.communicate("", timeout=60)
        assert (process.returncode, output.strip()) == (0, "still here")
        remove_abandoned(base)
        assert not folder.exists()
    finally:
        process.kill()
        shutil.rmtree(base, ignore_errors=True)
