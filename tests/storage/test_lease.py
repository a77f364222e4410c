import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from twostream_ray.errors import LeaseError, StorageError
from twostream_ray.storage import lease
from twostream_ray.storage.lease import FILE, held, holder_of

HOLDER = """
import sys, time
from twostream_ray.storage.lease import held
with held(sys.argv[1], work="run 'x'", way_out="wait"):
    print("held", flush=True)
    time.sleep(600)
"""
RIVAL = """
import sys, time
from twostream_ray.storage.lease import held
from twostream_ray.errors import LeaseError
while not __import__("os").path.exists(sys.argv[2]):
    pass
try:
    with held(sys.argv[1], work="run 'x'", way_out="wait"):
        print("held", flush=True)
        time.sleep(2)
except LeaseError:
    print("refused", flush=True)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave(folder: Path, **change: Any) -> None:
    """A lease as another holder would have left it: this process's, except for what is changed."""
    with held(str(folder), work="run 'x'", way_out="wait"):
        left = json.loads((folder / FILE).read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(left | change))


def test_a_place_in_use_is_refused_naming_user_host_process_and_since_when(tmp_path: Path) -> None:
    process = holding(tmp_path / "x")
    try:
        with (
            pytest.raises(
                LeaseError,
                match=rf"^run 'y' needs exclusive use of {tmp_path}/x, which is in use by \S+ on \S+ "
                rf"\(process {process.pid}, run 'x'\) since 20\d\d-\S+ \S+ UTC: choose another --name$",
            ),
            held(str(tmp_path / "x"), work="run 'y'", way_out="choose another --name"),
        ):
            pass
        assert holder_of(str(tmp_path / "x")) is not None
    finally:
        process.kill()
        process.wait()


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once_and_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = holding(tmp_path / "x")
    process.send_signal(signal.SIGKILL)
    # Not waited for: a zombie is gone as well.
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    started = time.monotonic()
    with held(str(tmp_path / "x"), work="run 'x'", way_out="wait"):
        assert time.monotonic() - started < 5
    (line,) = caplog.messages
    assert line.startswith(f"run 'x' takes over {tmp_path}/x, which was held by ") and "whose process is gone" in line
    process.wait()


def test_a_process_id_that_was_used_again_does_not_hold_the_place(tmp_path: Path) -> None:
    leave(tmp_path, process_start=1)
    with held(str(tmp_path), work="run 'x'", way_out="wait"):
        pass


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work(_: int) -> bool:
        nonlocal inside, most
        try:
            with held(str(tmp_path / "x"), work="run 'x'", way_out="wait"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.2)
                inside -= 1
                return True
        except LeaseError:
            return False

    with ThreadPoolExecutor(8) as threads:
        held_by = sum(threads.map(work, range(8)))
    assert most == 1 and held_by >= 1


@pytest.mark.slow
def test_of_many_processes_that_begin_at_once_over_a_stale_lease_one_gets_it(tmp_path: Path) -> None:
    leave(tmp_path / "x", process_start=1)
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(tmp_path / "x"), str(tmp_path / "go")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(4)
    ]
    time.sleep(1.5)
    (tmp_path / "go").touch()
    said = sorted(rival.communicate(timeout=60)[0].strip() for rival in rivals)
    assert said.count("held") == 1 and said.count("refused") == 3


def test_a_holder_of_another_host_that_renews_is_refused_and_one_that_does_not_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "_STALE_S", 0.6)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    leave(tmp_path, host="node-7", machine="another boot", renewed=time.time())
    renewing = threading.Event()

    def renew() -> None:
        while not renewing.wait(0.1):
            values = json.loads((tmp_path / FILE).read_text())
            (tmp_path / "new").write_text(json.dumps(values | {"renewed": time.time()}))
            (tmp_path / "new").replace(tmp_path / FILE)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(LeaseError, match=r"in use by \S+ on node-7"),
            held(str(tmp_path), work="run 'x'", way_out="wait"),
        ):
            pass
    finally:
        renewing.set()
        thread.join()
    with held(str(tmp_path), work="run 'x'", way_out="wait"):
        pass
    assert "and did not renew it" in caplog.messages[-1]


def test_a_lease_of_another_host_from_yesterday_is_taken_over_at_once(tmp_path: Path) -> None:
    leave(tmp_path, host="node-7", machine="another boot", renewed=time.time() - 86400)
    started = time.monotonic()
    with held(str(tmp_path), work="run 'x'", way_out="wait"):
        assert time.monotonic() - started < 5


def test_who_has_lost_a_place_hears_of_it_and_leaves_it_to_the_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_S", 0.05)
    lost = threading.Event()
    with (
        pytest.raises(LeaseError, match=r"run 'x' was stopped: .* taken over by \S+ on node-7"),
        held(str(tmp_path), work="run 'x'", way_out="wait", when_lost=lost.set),
    ):
        values = json.loads((tmp_path / FILE).read_text())
        (tmp_path / "new").write_text(json.dumps(values | {"key": "other", "host": "node-7", "machine": "other"}))
        (tmp_path / "new").replace(tmp_path / FILE)
        assert lost.wait(10)
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node-7"


def test_a_lease_is_renewed_while_it_is_held_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_S", 0.05)
    with held(str(tmp_path / "x"), work="run 'x'", way_out="wait"):
        first = holder_of(str(tmp_path / "x"))
        assert first is not None
        deadline = time.monotonic() + 10
        while (now := holder_of(str(tmp_path / "x"))) is not None and now.renewed == first.renewed:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert now is not None and now.key == first.key
    assert not (tmp_path / "x").exists(), "nor a folder that was made for it"


@pytest.mark.parametrize(
    "content", ["no json", '{"key": 1}', "[]", '{"key": "k", "process": 1e30}', "[" * 5000], ids=range(5)
)
def test_what_is_no_lease_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with (
        pytest.raises(LeaseError, match=rf"a lease was wanted at {tmp_path}/{FILE}.*delete it if nobody"),
        held(str(tmp_path), work="run 'x'", way_out="wait"),
    ):
        pass
    assert (tmp_path / FILE).read_text() == content


def test_a_link_to_a_file_of_the_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / FILE).symlink_to(tmp_path / "precious")
    with (
        pytest.raises(StorageError, match=r"the lock file .* is a symbolic link: remove it"),
        held(str(tmp_path / "x"), work="run 'x'", way_out="wait"),
    ):
        pass
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir(mode=0o500)
    with (
        pytest.raises(StorageError, match=r"run 'x' wants to write into .*/x, it cannot \(Permission denied\)"),
        held(str(tmp_path / "x"), work="run 'x'", way_out="wait"),
    ):
        pass
