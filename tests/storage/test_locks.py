import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forked_processes import processes

from twostream_ray.errors import StorageError
from twostream_ray.storage.locks import locked, process_lock
from twostream_ray.tracking import TrackingConfig, start_run

HOLD = (
    "import sys, time\n"
    "from twostream_ray.storage.locks import process_lock\n"
    "with process_lock('this', wait_s=0) as free:\n"
    "    print(free, flush=True)\n"
    "    sys.stdin.readline()\n"
)


def count_up(lock: Path, counter: Path) -> None:
    for _ in range(50):
        with locked(lock):
            counter.write_text(str(int(counter.read_text()) + 1))


def test_one_at_a_time_holds_a_lock_though_its_file_comes_and_goes(tmp_path: Path) -> None:
    lock, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    with (
        processes(2) as several,
        ThreadPoolExecutor(2) as threads,
    ):
        for future in [where.submit(count_up, lock, counter) for where in (several, threads) for _ in range(2)]:
            future.result()
    assert counter.read_text() == "200"
    assert not lock.exists(), "nothing stays behind"


def test_who_does_not_wait_gets_an_error_and_leaves_the_lock_to_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock):
        with pytest.raises(BlockingIOError), locked(lock, wait=False):
            pass
        assert lock.exists()
    with locked(lock, wait=False, keep=True) as file:
        file.write(b"7")
    assert lock.read_bytes() == b"7"


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "link to a fifo"])
def test_a_lock_is_never_taken_through_a_link_or_in_something_else(tmp_path: Path, kind: str) -> None:
    lock, target = tmp_path / "lock", tmp_path / "precious"
    if kind == "link":
        target.write_text("precious")
    elif kind == "link to a fifo":
        os.mkfifo(target)
    if kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.symlink_to(target)
    said = r"the lock file .*/lock is (a symbolic link|not a regular file): remove it"
    with pytest.raises(StorageError, match=said), locked(lock):
        pass
    assert kind != "link" or target.read_text() == "precious"
    assert kind != "dangling link" or not target.exists()


def own(shared: Path) -> Path:
    return shared / f"twostream-{os.getuid()}"


def test_the_folder_is_the_users_alone_and_nothing_is_left_beside_it(shared: Path) -> None:
    with process_lock("this", wait_s=0) as free:
        assert free
        assert [path.name for path in shared.iterdir()] == [own(shared).name]
        assert own(shared).stat().st_mode & 0o777 == 0o700
        (lock,) = own(shared).iterdir()
        assert lock.stat().st_mode & 0o777 == 0o600
    assert not list(own(shared).iterdir()), "locks are cleaned up"


def test_a_lock_is_held_by_one_process_at_a_time_and_let_go_by_a_killed_one(shared: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "True"
    with process_lock("this", wait_s=0.2) as free:
        assert not free
    with process_lock("that", wait_s=0) as free:
        assert free
    holder.kill()
    holder.wait()
    with process_lock("this", wait_s=20) as free:
        assert free


def test_a_process_that_waits_for_a_lock_that_is_cleaned_up_gets_another_and_is_alone(shared: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from twostream_ray.storage.locks import process_lock\n"
        "for _ in range(40):\n"
        "    with process_lock('this', wait_s=60):\n"
        "        inside = pathlib.Path(sys.argv[1])\n"
        "        inside.mkdir()\n"  # fails where another is inside
        "        inside.rmdir()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(shared / "inside")]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


@pytest.mark.parametrize("planted", ["link to a directory", "link to nowhere", "file", "open to all"])
def test_a_folder_that_is_not_the_users_alone_is_refused_and_left_as_it_is(shared: Path, planted: str) -> None:
    precious = shared / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    match planted:
        case "link to a directory":
            own(shared).symlink_to(precious)
        case "link to nowhere":
            own(shared).symlink_to(shared / "nowhere")
        case "file":
            own(shared).write_text("mine")
        case _:
            own(shared).mkdir()
            own(shared).chmod(0o777)
    with (
        pytest.raises(
            StorageError, match=r"a directory of user \d+ with mode 0700, .* let TMPDIR name another directory"
        ),
        process_lock("this", wait_s=0),
    ):
        pass
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"] and not (shared / "nowhere").exists()


def test_no_link_in_the_shared_folder_makes_a_run_truncate_what_it_points_to(
    shared: Path, tracking_at: TrackingConfig, tmp_path: Path
) -> None:
    """Names that could be guessed: of this version's locks, and of those of earlier ones."""
    import hashlib

    precious = tmp_path / "precious.txt"
    precious.write_text("years")
    own(shared).mkdir(mode=0o700)
    for what in (str(tmp_path / "run" / "tracking-journal"), tracking_at.resolved_uri()):
        name = hashlib.sha256(what.encode()).hexdigest()[:16]
        (shared / f"twostream-{os.getuid()}-{name}.lock").symlink_to(precious)
        (own(shared) / f"{name}.lock").symlink_to(precious)
    began = time.monotonic()
    start_run(tracking_at, run_name="run", run_uri=str(tmp_path / "run"), parameters={}, tags={})
    assert precious.read_text() == "years"
    assert time.monotonic() - began < 60


@pytest.fixture
def tracking_at(tmp_path: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/locks.db")
