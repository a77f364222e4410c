import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from twostream_ray.errors import StorageError
from twostream_ray.storage.locks import locked


def count_up(lock: Path, counter: Path) -> None:
    for _ in range(50):
        with locked(lock):
            counter.write_text(str(int(counter.read_text()) + 1))


def test_one_at_a_time_holds_a_lock_though_its_file_comes_and_goes(tmp_path: Path) -> None:
    lock, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    with (
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes,
        ThreadPoolExecutor(2) as threads,
    ):
        for future in [where.submit(count_up, lock, counter) for where in (processes, threads) for _ in range(2)]:
            future.result()
    assert counter.read_text() == "200"
    assert not lock.exists(), "nothing stays behind"


def test_who_does_not_wait_is_told_and_leaves_the_lock_to_its_holder(tmp_path: Path) -> None:
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
    said = r"a lock was wanted at .*/lock, it is (a link|no regular file): remove it"
    with pytest.raises(StorageError, match=said), locked(lock):
        pass
    assert kind != "link" or target.read_text() == "precious"
    assert kind != "dangling link" or not target.exists()
