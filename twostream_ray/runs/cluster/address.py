"""RAY_ADDRESS, checked before Ray reads it: a cluster that does not answer is named at once, not after minutes."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from twostream_ray.errors import ClusterError

_PATIENCE_S = 5.0
_AT_ONCE_S = 1.0
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What a client of gRPC says first: the preface and an empty frame of settings (RFC 9113, section 3.4)."""
_SETTINGS_FRAME = 4
_LOCAL = "unset RAY_ADDRESS to run on this machine alone"


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names, found to answer; None where a private one is to be started.

    Raises:
        ClusterError: it names no cluster's HOST:PORT, or nothing there answers as Ray does.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    if address == "auto":
        return address
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS wants HOST:PORT of a cluster's head, as in 10.0.0.1:6379, got {address}: to run there from "
            "outside, unset it and submit the command as a job, `RAY_API_SERVER_ADDRESS=http://HOST:8265 ray job "
            f"submit -- twostream ...`; or {_LOCAL}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClusterError(
            f"RAY_ADDRESS wants HOST:PORT of a cluster's head, as in 10.0.0.1:6379, or auto, got {address!r}: "
            f"mend it, or {_LOCAL}"
        )
    try:
        answered = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS names the Ray cluster {address}, which does not answer ({error.strerror or error}): "
            f"start it, or {_LOCAL}"
        ) from error
    if not answered:
        raise ClusterError(
            f"RAY_ADDRESS wants HOST:PORT of a cluster's head, what answers at {address} is something else: Ray's port "
            f"is 6379 unless `ray start --head --port` says otherwise; or {_LOCAL}"
        )
    return address


def cluster_of_this_machine() -> str | None:
    """HOST:PORT of the cluster that `ray start --head` has started on this machine, if RAY_ADDRESS is silent about it.

    By the file in which Ray notes it for the commands of this machine's users; None where nothing answers there.
    """
    if os.environ.get("RAY_ADDRESS", "").strip():
        return None
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    with suppress(OSError, ValueError):
        host, _, port = note.read_text(encoding="utf-8").strip().rpartition(":")
        if host and _speaks_grpc(host.strip("[]"), int(port), patience_s=_AT_ONCE_S):
            return f"{host}:{port}"
    return None


def _speaks_grpc(host: str, port: int, *, patience_s: float = _PATIENCE_S) -> bool:
    """Whether a server of gRPC, as Ray's control service is one, answers there.

    Raises:
        OSError: nothing answers.
    """
    with socket.create_connection((host, port), timeout=patience_s) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return True
        try:
            connection.sendall(_HTTP2_GREETING)
            head = connection.recv(9, socket.MSG_WAITALL)
        except (TimeoutError, ConnectionError):
            return False
    return len(head) == 9 and head[3] == _SETTINGS_FRAME
