"""Validation of RAY_ADDRESS before ray.init: an unreachable cluster is an error at once, not after minutes."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from twostream_ray.errors import ClusterError

_TIMEOUT_S = 5.0
_LOCAL_TIMEOUT_S = 1.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""First bytes of a gRPC client: the connection preface and an empty SETTINGS frame (RFC 9113, section 3.4)."""
_SETTINGS_FRAME = 4
_LOCAL = "unset RAY_ADDRESS to run on this machine alone"


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names, after checking that it answers; None if a private one is to be started.

    Raises:
        ClusterError: it is not HOST:PORT, or no Ray cluster answers there.
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
            f"correct it, or {_LOCAL}"
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
            f"RAY_ADDRESS wants HOST:PORT of a cluster's head, but something else answers at {address}: Ray's port is "
            f"6379 unless `ray start --head --port` says otherwise; or {_LOCAL}"
        )
    return address


def cluster_of_this_machine() -> str | None:
    """HOST:PORT of a cluster that `ray start --head` started on this machine; None without one, or with RAY_ADDRESS.

    It is read from the file in which Ray records it for its commands; None also if nothing answers there.
    """
    if os.environ.get("RAY_ADDRESS", "").strip():
        return None
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    with suppress(OSError, ValueError):
        host, _, port = note.read_text(encoding="utf-8").strip().rpartition(":")
        if host and _speaks_grpc(host.strip("[]"), int(port), timeout_s=_LOCAL_TIMEOUT_S):
            return f"{host}:{port}"
    return None


def _speaks_grpc(host: str, port: int, *, timeout_s: float = _TIMEOUT_S) -> bool:
    """Whether a gRPC server, such as Ray's GCS, answers at an address.

    Raises:
        OSError: nothing answers.
    """
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return True
        try:
            connection.sendall(_HTTP2_PREFACE)
            head = connection.recv(9, socket.MSG_WAITALL)
        except (TimeoutError, ConnectionError):
            return False
    return len(head) == 9 and head[3] == _SETTINGS_FRAME
