"""HTTP/1.1 over bare sockets: requests as no library would send them, slow, endless, cut off or malformed."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

BOUNDARY = "----boundary-of-these-tests"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The bytes of a request, as they go out."""

    head: bytes
    """Request line and headers, with the empty line."""
    body: Callable[[], Iterable[bytes]] = tuple
    """Its pieces."""
    pause_s: float = 0.0
    """Time before each piece."""
    head_pause_s: float = 0.0
    """Time before each byte of the head, where it is not sent at once."""
    ends: bool = False
    """The client sends no more after the last piece, whatever it has announced."""
    leaves_after_s: float | None = None
    """When the client is gone, answer or not."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said."""

    status: int | None
    """None: it closed the connection without an answer, or the client left."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Lower-case names."""
    body: bytes = b""
    seconds: float = 0.0
    """From the connection to the end of the answer."""
    sent_bytes: int = 0
    """What the server's machine had taken of the request by then."""

    def json(self) -> Any:
        """The body read."""
        return json.loads(self.body)


def request(
    path: str,
    *,
    method: str = "POST",
    media: str | None = "application/octet-stream",
    content: bytes = b"",
    length: int | str | None = None,
    headers: Mapping[str, str] | None = None,
    **how: Any,
) -> Request:
    """A request with a body; `length` is what it announces, by default the truth."""
    lines = {
        "Host": "service",
        "Connection": "close",
        "Content-Length": str(len(content) if length is None else length),
    }
    lines |= {} if media is None else {"Content-Type": media}
    return Request(head=_head(method, path, lines | dict(headers or {})), **({"body": lambda: (content,)} | how))


def chunked(path: str, pieces: Callable[[], Iterable[bytes]], *, media: str = "video/mp4", **how: Any) -> Request:
    """A request whose body has no announced length."""

    def framed() -> Iterator[bytes]:
        for piece in pieces():
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"

    lines = {"Host": "service", "Connection": "close", "Content-Type": media, "Transfer-Encoding": "chunked"}
    return Request(head=_head("POST", path, lines), body=framed, **how)


def multipart(path: str, parts: Sequence[tuple[str, bytes]], *, boundary: str = BOUNDARY) -> Request:
    """A form of (header lines, content)."""
    content = (
        b"".join(f"--{boundary}\r\n{header}\r\n\r\n".encode() + part + b"\r\n" for header, part in parts)
        + f"--{boundary}--\r\n".encode()
    )
    return request(path, media=f"multipart/form-data; boundary={boundary}", content=content)


def get(path: str) -> Request:
    """A request without a body."""
    return Request(head=_head("GET", path, {"Host": "service", "Connection": "close"}))


def endless(piece: bytes) -> Iterator[bytes]:
    """The piece for ever."""
    while True:
        yield piece


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


async def send(port: int, sent: Request, *, timeout_s: float = 120.0, host: str = "127.0.0.1") -> Answer:
    """Send a request and read its answer, which may come before the request has ended.

    Raises:
        TimeoutError: neither an answer nor the end of the connection came.
    """
    loop = asyncio.get_running_loop()
    started = time.monotonic()
    connection = socket.socket()
    connection.setblocking(False)
    taken = [0]
    try:
        await loop.sock_connect(connection, (host, port))
        writing = asyncio.create_task(_write(connection, sent, taken))
        try:
            async with asyncio.timeout(sent.leaves_after_s or timeout_s):
                received = await _read(connection)
        except TimeoutError:
            if sent.leaves_after_s is None:
                raise
            received = b""
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await writing
    finally:
        connection.close()
    return _parsed(received, seconds=time.monotonic() - started, sent_bytes=taken[0])


async def _write(connection: socket.socket, sent: Request, taken: list[int]) -> None:
    loop = asyncio.get_running_loop()
    pieces: Iterable[bytes] = [sent.head]
    if sent.head_pause_s:
        pieces = (sent.head[index : index + 1] for index in range(len(sent.head)))
    for pause_s, parts in ((sent.head_pause_s, pieces), (sent.pause_s, sent.body())):
        for piece in parts:
            # Also without a pause: others have their turn.
            await asyncio.sleep(pause_s)
            await loop.sock_sendall(connection, piece)
            taken[0] += len(piece)
    if sent.ends:
        connection.shutdown(socket.SHUT_WR)


async def _read(connection: socket.socket) -> bytes:
    """All that comes until the answer is whole or the connection ends."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while not _is_whole(received):
        try:
            piece = await loop.sock_recv(connection, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        received += piece
    return bytes(received)


def _split(received: bytes | bytearray) -> tuple[int, dict[str, str], bytes] | None:
    head, separator, body = bytes(received).partition(b"\r\n\r\n")
    if not separator:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    # 100 Continue and its like precede the answer.
    return _split(body) if status < 200 else (status, headers, body)


def _is_whole(received: bytearray) -> bool:
    parts = _split(received)
    if parts is None:
        return False
    _, headers, body = parts
    if "content-length" in headers:
        return len(body) >= int(headers["content-length"])
    return headers.get("transfer-encoding") == "chunked" and body.endswith(b"0\r\n\r\n")


def _parsed(received: bytes, *, seconds: float, sent_bytes: int) -> Answer:
    parts = _split(received)
    if parts is None:
        return Answer(status=None, seconds=seconds, sent_bytes=sent_bytes)
    status, headers, body = parts
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return Answer(status=status, headers=headers, body=body, seconds=seconds, sent_bytes=sent_bytes)


def _unchunked(body: bytes) -> bytes:
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        content, body = content + rest[:length], rest[length + 2 :] if length else b""
    return content


async def send_all(port: int, many: Sequence[Request], *, at_once: int, timeout_s: float = 300.0) -> list[Answer]:
    """All answers, in the order of the requests, of which at most `at_once` are under way."""
    free = asyncio.Semaphore(at_once)

    async def one(sent: Request) -> Answer:
        async with free:
            return await send(port, sent, timeout_s=timeout_s)

    return list(await asyncio.gather(*map(one, many)))
