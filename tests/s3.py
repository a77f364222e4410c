"""An object store for tests, that of the cluster on one machine, and a network before it that loses requests."""

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.box.object_store import PORTS, ObjectStore
from cluster.box.server_process import free_ports
from twostream_ray.storage import object_store

KEY, SECRET = "test:tester", "testing"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_HOPS = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The server with its data in a folder, and in it a bucket `archive`; gives its port."""
    store = ObjectStore(folder=folder, port=free_ports(PORTS), key=KEY, secret=SECRET)
    process = store.start()
    try:
        store.wait(process, buckets=["archive"])
        yield store.port
    finally:
        process.kill()


@contextmanager
def reached_at(endpoint: str) -> Iterator[None]:
    """The environment of this process and its children points to a store there, with the right secret."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        object_store.reader.cache_clear()
        yield
    object_store.reader.cache_clear()


class FaultyProxy:
    """Forwards to a server on this machine; `fail_fraction` of all requests meet one of three faults, drawn by seed."""

    def __init__(self, port: int, *, fail_fraction: float = 0.0, seed: int = 0) -> None:
        self.upstream, self.fail_fraction = port, fail_fraction
        self.requests: Counter[str] = Counter()
        self.bodies: list[str] = []
        """Paths of GET requests that were answered whole."""
        self.written: list[str] = []
        """Paths of PUT requests that reached the server."""
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._port = 0
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Be there (again), at the same port."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.away = False

    def go_away(self) -> None:
        """Refuse connections, and end those that are open."""
        self.away = True
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> str | None:
        """The fault that a request meets."""
        with self._lock:
            if self._random.random() >= self.fail_fraction:
                return None
            return self._random.choice(["busy", "cut", "lost"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyProxy

    def _forward(self) -> None:
        body = self._body()
        proxy, fault = self.owner, self.owner.draw()
        if proxy.away:
            self.close_connection = True
            return
        proxy.requests[fault or "whole"] += 1
        if fault == "busy":
            self._answer(503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body=body, headers=headers, encode_chunked=self._is_chunked())
            answer = upstream.getresponse()
            content, answered = answer.read(), answer.getheaders()
            length = answer.getheader("Content-Length")
        finally:
            upstream.close()
        if self.command == "PUT":
            proxy.written.append(self.path)
        if fault == "lost":
            # Done by the store, and nobody hears of it.
            self.close_connection = True
            return
        if fault is None and self.command == "GET" and answer.status < 300:
            proxy.bodies.append(self.path)
        self._answer(answer.status, answered, content, length=length, cut=fault == "cut")

    def _is_chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _body(self) -> bytes | list[bytes]:
        if not self._is_chunked():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while length := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        length: str | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOPS | {"content-length"}:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
