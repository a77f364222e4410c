import os
import subprocess
import sys

from twostream_ray.processes import is_gone, started_at, this_machine


def test_a_process_that_runs_is_not_gone_and_one_that_has_ended_is() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = started_at(child.pid)
    assert start is not None and start > 0
    assert not is_gone(child.pid, start=start)
    child.communicate(b"\n")
    assert is_gone(child.pid, start=start)
    assert started_at(child.pid) in (None, 0)


def test_a_process_id_that_was_used_again_is_of_another_process() -> None:
    start = started_at(os.getpid())
    assert start is not None
    assert not is_gone(os.getpid(), start=start)
    assert is_gone(os.getpid(), start=start - 1)


def test_a_process_that_has_ended_but_was_not_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert started_at(child.pid) == 0 and is_gone(child.pid, start=1)
    child.wait()


def test_a_machine_is_known_by_host_boot_and_namespace() -> None:
    assert this_machine() == this_machine()
    assert this_machine().host
