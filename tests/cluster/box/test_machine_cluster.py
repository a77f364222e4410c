import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.box.__main__ import main
from cluster.box.machine_cluster import PORTS, Addresses, MachineCluster, found
from cluster.box.server_process import ServerProcess, free_ports


@pytest.fixture
def addresses() -> Iterator[Addresses]:
    folder = Path(tempfile.mkdtemp(prefix="box-"))
    yield Addresses(port=free_ports(PORTS), folder=folder / "c")
    shutil.rmtree(folder)


def commanded(command: str, addresses: Addresses, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([command, "--port", str(addresses.port), "--folder", str(addresses.folder)])
    printed = capfd.readouterr()
    return code, printed.out + printed.err


def test_a_taken_port_is_named_in_one_line_and_nothing_starts(
    addresses: Addresses, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", addresses.port + 3))
        taken.listen()
        code, printed = commanded("up", addresses, capfd)
    assert (code, printed.count("\n")) == (2, 1)
    assert f"taken: {addresses.port + 3};" in printed and "PORT=" in printed
    assert not addresses.folder.exists()


def test_no_cluster_is_one_line_for_down_and_for_status(
    addresses: Addresses, capfd: pytest.CaptureFixture[str]
) -> None:
    assert commanded("down", addresses, capfd) == (0, f"no cluster is up at port {addresses.port}\n")
    assert commanded("status", addresses, capfd) == (1, f"no cluster is up at port {addresses.port}\n")


@pytest.mark.parametrize("port", [-1, 0, 80, 65530, 70_000])
def test_a_port_that_is_none_is_refused_in_one_line(
    port: int, addresses: Addresses, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = commanded("up", Addresses(port=port, folder=addresses.folder), capfd)
    assert (code, printed.count("\n")) == (2, 1) and "a first port from 1024 to 655" in printed


def test_a_folder_that_cannot_be_made_or_holds_something_is_refused_and_left_alone(
    addresses: Addresses, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = commanded("up", Addresses(port=addresses.port, folder=addresses.folder / "far/away"), capfd)
    assert (code, printed.count("\n")) == (2, 1) and "cannot be made (No such file or directory)" in printed
    addresses.folder.mkdir()
    (addresses.folder / "thesis.tex").touch()
    for _ in range(2):
        code, printed = commanded("up", addresses, capfd)
        assert (code, printed.count("\n")) == (2, 1) and "holds thesis.tex and is no cluster's" in printed
        assert commanded("down", addresses, capfd)[0] == 0
    assert [path.name for path in addresses.folder.iterdir()] == ["thesis.tex"]


def noted(addresses: Addresses, *processes: ServerProcess, is_complete: bool = True) -> MachineCluster:
    addresses.folder.mkdir(exist_ok=True)
    cluster = MachineCluster(addresses, secret="of this test", checkout="/a/clone")
    cluster.processes = {process.name: process for process in processes}
    cluster.is_complete = is_complete
    cluster.save()
    return cluster


def waiting(name: str, folder: Path) -> ServerProcess:
    """A process that starts another one and waits."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"
    return ServerProcess.started(name, [sys.executable, "-c", code], log=folder / f"{name}.log", environment=os.environ)


@pytest.mark.slow
def test_down_ends_what_was_started_with_its_children_and_another_process_of_a_used_id_is_left_alone(
    addresses: Addresses, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, strange = waiting("ours", tmp_path), waiting("strange", tmp_path)
    while not (below := ours.below()):
        pass
    later = ServerProcess(name="gone", pid=strange.pid, start=strange.start - 1, log="")
    noted(addresses, ours, later)
    try:
        code, printed = commanded("down", addresses, capfd)
        assert code == 0 and "is gone" in printed
        assert ours.has_ended() and not any(child.is_running() for child in below)
        assert not strange.has_ended()
        assert not addresses.folder.exists()
    finally:
        strange.kill()
        ours.kill()


def test_a_second_start_says_that_it_is_up_and_one_with_a_dead_part_says_which(
    addresses: Addresses, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, server = waiting("the store", tmp_path), waiting("the MLflow server", tmp_path)
    noted(addresses, store, server)
    try:
        code, printed = commanded("up", addresses, capfd)
        assert (code, printed.count("\n")) == (0, 1) and "up already, from /a/clone" in printed
        server.kill()
        code, printed = commanded("up", addresses, capfd)
        assert (code, printed.count("\n")) == (2, 1) and "the MLflow server of the cluster" in printed
        assert commanded("status", addresses, capfd)[0] == 1
    finally:
        commanded("down", addresses, capfd)
        store.kill()


@pytest.mark.parametrize("killed_after", ["its folder", "its note", "its first server"])
def test_a_start_that_was_killed_is_no_cluster_and_the_next_start_begins_anew(
    killed_after: str,
    addresses: Addresses,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = waiting("the store", tmp_path)
    addresses.folder.mkdir()
    if killed_after != "its folder":
        (addresses.folder / "tmp").mkdir()
        noted(addresses, *([store] if killed_after == "its first server" else []), is_complete=False)
        code, printed = commanded("status", addresses, capfd)
        assert code == 1 and "its start was interrupted" in printed

    def started(cluster: MachineCluster, _: object) -> None:
        (cluster.addresses.folder / "tmp").mkdir()
        cluster.is_complete = True
        cluster.save()

    monkeypatch.setattr(MachineCluster, "start", started)
    try:
        code, printed = commanded("up", addresses, capfd)
        assert code == 0 and "up after" in printed and "up already" not in printed, printed
        assert store.has_ended() == (killed_after == "its first server")
        assert commanded("status", addresses, capfd)[0] == 0
    finally:
        store.kill()


def test_secrets_are_drawn_for_each_cluster_and_are_nobody_elses_to_read(addresses: Addresses) -> None:
    cluster = noted(addresses)
    again = found(addresses)
    assert again is not None and again.client_environment == cluster.client_environment
    secrets = [cluster.store.secret, cluster.mlflow.password, cluster.ray.token, cluster.secret]
    assert len(set(secrets)) == 4
    other = MachineCluster(addresses, secret="another", checkout="")
    assert other.ray.token != cluster.ray.token


def test_a_folder_that_is_a_link_is_refused(
    addresses: Addresses, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    addresses.folder.symlink_to(tmp_path)
    code, printed = commanded("up", addresses, capfd)
    assert code == 2 and "another user's" in printed


def test_a_server_that_ends_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    from twostream_ray.errors import ClusterError

    command = [sys.executable, "-c", "print('no room')"]
    started = ServerProcess.started("a server", command, log=tmp_path / "log", environment=os.environ)
    with pytest.raises(ClusterError, match=r"a server has ended; its log .* ends with: no room"):
        started.wait_until(lambda: False, seconds=30)


@pytest.mark.soak
@pytest.mark.own_cluster
def test_up_and_down_twice_leave_nothing(addresses: Addresses, capfd: pytest.CaptureFixture[str]) -> None:
    def seen() -> set[str]:
        """Of this machine: its shared memory, temporary files, and processes that name the cluster's folder."""
        files = {str(path) for where in ("/dev/shm", tempfile.gettempdir()) for path in Path(where).iterdir()}
        named = set()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(addresses.folder).encode() in process.read_bytes():
                    named.add(process.parent.name)
            except OSError:
                continue
        return files | named

    before = seen()
    for _ in range(2):
        code, printed = commanded("up", addresses, capfd)
        assert code == 0, printed
        assert commanded("status", addresses, capfd)[0] == 0
        code, printed = commanded("up", addresses, capfd)
        assert code == 0 and printed.count("\n") == 1 and "up already" in printed
        assert commanded("down", addresses, capfd)[0] == 0
        assert commanded("down", addresses, capfd) == (0, f"no cluster is up at port {addresses.port}\n")
        assert seen() - before == set()
