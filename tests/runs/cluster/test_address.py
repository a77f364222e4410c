import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster import private_cluster
from twostream_ray.runs.cluster.address import cluster_address, cluster_of_this_machine


@contextmanager
def port_that(answers: bytes | None) -> Iterator[int]:
    """A port where nobody listens (None), or one that says something to any client that connects and then waits."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        if answers is None:
            yield port
            return
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(answers)
            held.append(connection)

        held: list[socket.socket] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port
        thread.join()
        held[0].close()


@pytest.mark.parametrize("address", ["", "local", " "])
def test_without_an_address_a_cluster_is_started_here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() is None


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8265",
        "https://host",
        "ray://10.0.0.1:10001",
        "10.0.0.1",
        "head:six",
        "head:",
        ":6379",
        "h:99999",
    ],
)
def test_an_address_of_another_kind_is_refused_and_the_right_kind_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS wants HOST:PORT of a cluster's head, as in .*unset"):
        cluster_address()


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with port_that(None) as port:
        for host in ("127.0.0.1", "localhost"):
            monkeypatch.setenv("RAY_ADDRESS", f"{host}:{port}")
            started = time.monotonic()
            with pytest.raises(ClusterError, match=rf"{host}:{port}, which does not answer \(Connection refused\)"):
                cluster_address()
            assert time.monotonic() - started < 10
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(ClusterError, match="which does not answer"):
        cluster_address()


@pytest.mark.parametrize("answers", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n+PONG\r\n"])
def test_another_service_is_not_taken_for_ray(answers: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with port_that(answers) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(ClusterError, match=r"but something else answers at .*: Ray's port"):
            cluster_address()


def test_a_cluster_that_is_there_is_recognised(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() == address


def test_a_cluster_that_listens_on_loopback_alone_is_joined(cluster: None) -> None:
    code = (
        "import ray\nfrom twostream_ray.runs.cluster.session import ray_session\n"
        "with ray_session(): print(len(ray.nodes()))"
    )
    mine = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    mine |= {"RAY_AUTH_TOKEN": private_cluster._TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | mine, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split() == ["1"], done.stderr


def test_a_cluster_that_wants_a_token_says_so_in_a_line(cluster: None) -> None:
    code = "from twostream_ray.runs.cluster.session import ray_session\nwith ray_session(): pass"
    mine = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | mine, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(
        r"twostream_ray.errors.ClusterError: the Ray cluster 127.0.0.1:\d+ requires a token: set RAY_AUTH_MODE", last
    )


def test_a_cluster_that_ray_start_has_left_on_this_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_of_this_machine() is None
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray/ray_current_cluster"
    for text in ("", "nonsense", "127.0.0.1:1", "[::1]:99999999"):
        note.write_text(text)
        assert cluster_of_this_machine() is None, text
    with port_that(bytes.fromhex("000000040000000000")) as port:
        note.write_text(f"127.0.0.1:{port}\n")
        assert cluster_of_this_machine() == f"127.0.0.1:{port}"
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert cluster_of_this_machine() is None
