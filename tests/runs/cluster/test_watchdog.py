import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.watchdog import note_stop, watched


def node(**processes: "subprocess.Popen[Any]") -> Any:
    """What is watched of Ray's node: its processes by kind."""
    return SimpleNamespace(all_processes={name: [SimpleNamespace(process=one)] for name, one in processes.items()})


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["raylet", "gcs_server"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_vital_process_that_dies_interrupts_whatever_is_waited_for_and_is_named(
    killed: str, number: signal.Signals
) -> None:
    processes = {name: subprocess.Popen(["sleep", "1000"]) for name in ("raylet", "gcs_server")}
    started = time.monotonic()
    try:
        with (
            pytest.raises(ClusterError, match=rf"{killed} of this run was ended by {number.name} .* in /logs until"),
            watched(node(**processes), folder="/logs", end=lambda: None),
        ):
            processes[killed].send_signal(number)
            time.sleep(60)
        assert time.monotonic() - started < 30
    finally:
        for one in processes.values():
            one.kill()
            one.wait()


def test_an_error_that_its_death_has_caused_gives_way_to_the_cause() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    with (
        pytest.raises(ClusterError, match="raylet of this run was ended by SIGKILL"),
        watched(node(raylet=process), folder="/logs", end=lambda: None),
    ):
        process.kill()
        process.wait()
        raise RuntimeError("RPC error: recvmsg: connection reset by peer")


@pytest.mark.slow
def test_processes_that_got_sigterm_interrupt_as_ctrl_c_does() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    with (
        pytest.raises(KeyboardInterrupt),
        watched(node(raylet=process), folder="/logs", end=lambda: None),
    ):
        process.terminate()
        time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["raylet", "gcs_server"])
def test_where_all_got_sigterm_one_that_ends_for_want_of_another_is_no_death(first: str) -> None:
    dies = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(1)"])
    stopped = subprocess.Popen(["sleep", "1000"])
    (second,) = {"raylet", "gcs_server"} - {first}
    with (
        pytest.raises(KeyboardInterrupt),
        watched(node(**{first: dies, second: stopped}), folder="/logs", end=lambda: None),
    ):
        dies.wait()
        stopped.terminate()
        time.sleep(60)


@pytest.mark.slow
def test_what_ends_of_ray_when_this_process_got_sigterm_got_it_too() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(1)"])
    with (
        pytest.raises(KeyboardInterrupt),
        watched(node(raylet=process), folder="/logs", end=lambda: None),
    ):
        note_stop()
        time.sleep(60)


def test_other_errors_and_ends_pass_while_the_processes_live() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        with watched(node(raylet=process), folder="/logs", end=lambda: None):
            pass
        with (
            pytest.raises(ValueError, match="mine"),
            watched(node(raylet=process), folder="/logs", end=lambda: None),
        ):
            raise ValueError("mine")
    finally:
        process.kill()
        process.wait()


STUCK = """
import subprocess, time
from types import SimpleNamespace
from twostream_ray.runs.cluster import watchdog
watchdog._PATIENCE_S = 0.5
process = subprocess.Popen(["false"])
node = SimpleNamespace(all_processes={"raylet": [SimpleNamespace(process=process)]})
with watchdog.watched(node, folder="/logs", end=lambda: print("ended the others", flush=True)):
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.slow
def test_a_block_that_cannot_be_interrupted_ends_with_its_process_and_one_line() -> None:
    ran = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert ran.stdout == "ended the others\n"
    assert ran.stderr.startswith("twostream: error: Ray's process raylet of this run ended with exit code 1")
    assert len(ran.stderr.splitlines()) == 1
