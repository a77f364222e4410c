"""What anybody on the network, or on this machine without the token, gets of a run's cluster: nothing."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
from listening import foreign_addresses, ports_of, post_job

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.private_cluster import remove_abandoned, require_limits, short_folder

STRANGER = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "RAY_USAGE_STATS_ENABLED": "0"}


def test_every_port_of_a_private_cluster_is_on_loopback_and_answers_nobody_elsewhere(cluster: None) -> None:
    listening = ports_of(os.getpid())
    assert len(listening) >= 5, "the control service, the node's two, its agents', its workers'"
    assert {address for _, address, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening
    assert foreign_addresses(), "an address of this machine beside loopback"
    for _, _, port in listening:
        for address in foreign_addresses():
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=1).close()


def test_no_port_takes_a_job_from_one_without_the_token(cluster: None) -> None:
    limit = time.monotonic() + 30
    answers: dict[int, int] = {}
    # A cluster is there before its agents are.
    while 401 not in answers.values() and time.monotonic() < limit:
        answers = {port: post_job(port) for _, _, port in ports_of(os.getpid())}
    assert 401 in answers.values(), "the agent's port of jobs was among them"
    assert not [port for port, answer in answers.items() if 200 <= answer < 400], answers


def test_the_control_service_gives_nothing_to_one_without_the_token_or_with_another(cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    code = (
        "import sys; from ray._raylet import GcsClient\n"
        "try: print(GcsClient(address=sys.argv[1]).internal_kv_keys(b'', b'session'))\n"
        "except Exception as error: print(type(error).__name__, error); sys.exit(3)\n"
    )
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        asked = subprocess.run(
            [sys.executable, "-c", code, address], env=STRANGER | token, capture_output=True, text=True, timeout=120
        )
        assert asked.returncode == 3, asked.stdout
        assert asked.stdout.startswith("AuthenticationError"), asked.stdout


def test_the_token_is_in_the_environment_of_the_clusters_processes_alone(cluster: None) -> None:
    def token() -> tuple[str | None, str | None]:
        return os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN")

    mode, seen = ray.get(ray.remote(token).options(num_cpus=0).remote())
    assert mode == "token" and len(seen) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    users = Path.home() / ".ray/auth_token"
    assert not users.exists() or users.read_text().strip() != seen, "the user's own stays as it is"
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert seen.encode() not in written
    assert folder.parents[1].stat().st_mode & 0o077 == 0, "a folder of this user alone"


def test_the_clusters_processes_are_in_sessions_of_their_own(cluster: None) -> None:
    processes = [
        one.process.pid for of_name in ray._private.worker._global_node.all_processes.values() for one in of_name
    ]
    assert len(processes) > 1
    for pid in processes:
        assert os.getsid(pid) != os.getsid(0), "a signal to the group of this process does not reach it"


ABANDONED = """
import os, subprocess, sys, tempfile
from pathlib import Path
from twostream_ray.storage.locks import locked
folder = Path(tempfile.mkdtemp(prefix="ts-", dir=sys.argv[1]))
with locked(folder / "owned"):
    log = (folder / "agent.log").open("w")
    child = subprocess.Popen(["sleep", "1000"], stdout=log, start_new_session=True)
    print(folder, child.pid, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_has_left_goes_with_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    base = Path(tempfile.mkdtemp(dir=tmp_path))
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", ABANDONED, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    lines = [driver.stdout.readline().split() for driver in drivers if driver.stdout is not None]
    (dead, agent), (alive, other) = ((Path(folder), int(pid)) for folder, pid in lines)
    (base / "ts-of-the-user").mkdir()
    (base / "ts-of-the-user/thesis.tex").write_text("mine")
    (base / "ts-link").symlink_to(base / "ts-of-the-user")
    reader = subprocess.Popen(["tail", "-f", str(dead / "agent.log")], stdout=subprocess.DEVNULL)
    try:
        drivers[0].kill()
        drivers[0].wait()
        os.kill(agent, 0)
        remove_abandoned(base)
        assert not dead.exists() and not _alive(agent)
        assert alive.exists() and Path(f"/proc/{other}").exists(), "its driver lives"
        assert (base / "ts-of-the-user/thesis.tex").read_text() == "mine"
        assert reader.poll() is None, "who only reads the logs is left alone"
    finally:
        drivers[1].kill()
        reader.kill()
        os.kill(other, signal.SIGKILL)


def _alive(pid: int) -> bool:
    """Whether a process that was no child of this one still runs."""
    limit = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.05)
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(("flag", "allowed"), [("-n", 64), ("-v", 6_000_000), ("-f", 100_000)])
def test_a_limit_of_the_shell_that_is_too_low_is_named_before_anything_starts(flag: str, allowed: int) -> None:
    code = "from twostream_ray.runs.cluster.private_cluster import require_limits; require_limits()"
    done = subprocess.run(
        ["bash", "-c", f"ulimit {flag} {allowed}; exec {sys.executable} -c '{code}'"], capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("twostream_ray.errors.ClusterError: a Ray cluster on this machine wants at least")
    assert f"`ulimit {flag}` allows {allowed}: raise it" in last


def test_the_limits_of_this_machine_are_enough() -> None:
    require_limits()


@pytest.mark.parametrize("length", [1, 30, 80, 200])
def test_a_long_temporary_folder_does_not_make_sockets_whose_path_is_too_long(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert len(f"{short_folder()}/ts-12345678/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store") <= 107


def test_a_temporary_folder_that_will_not_do_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ClusterError, match=r"at most 2\d characters; .*xxx has \d+, .*set RAY_TMPDIR to one"):
        short_folder()
