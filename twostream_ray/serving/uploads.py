"""Streaming upload: a request's body goes to a file as it comes, within bounds of size and time.

Raw, as the file of a multipart form, or read from a URI that JSON names.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from twostream_ray import storage
from twostream_ray.errors import StorageError
from twostream_ray.serving.refusals import Refusal
from twostream_ray.serving.settings import LimitsConfig

_ENVELOPE_BYTES = 64 << 10
"""What a form has around its file, and what JSON may have."""
_HEADER_BYTES = 8 << 10
_RAW = "application/octet-stream"
_TAKEN = "video/*, application/octet-stream, multipart/form-data with a file `video`, or application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A video as it was sent."""

    path: Path
    """Its file, which goes with the request."""
    sha256: str
    """Of its bytes."""
    size_bytes: int
    seconds: float
    """What it took to arrive."""


class Receiver:
    """Takes bodies, so many at a time."""

    def __init__(self, folder: Path, *, limits: LimitsConfig, uris: Sequence[str]) -> None:
        """Files are kept in the folder for as long as their requests."""
        self._folder, self._limits, self._uris = folder, limits, uris
        self.receiving = 0
        """Bodies that are on their way."""
        self.received_bytes = 0
        """Of all bodies so far."""

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[Upload]:
        """The video of a request, for the block.

        Raises:
            Refusal: it is of another kind, too large, too slow, or cannot be had.
        """
        media, options = _media_type(request)
        self._refuse_size(request, more=0 if media == _RAW else _ENVELOPE_BYTES)
        if self.receiving >= self._limits.receiving:
            raise Refusal("busy", "too many videos are on their way: try again", headers={"Retry-After": "5"})
        started = time.perf_counter()
        with self._new_file() as file:
            self.receiving += 1
            try:
                if media == "application/json":
                    named = await self._named_file(request, Path(file.name))
                    sha256, size = await asyncio.to_thread(_digest, named)
                else:
                    named = Path(file.name)
                    sha256, size = await self._write_body(request, file, media=media, options=options)
            finally:
                self.receiving -= 1
            if size == 0:
                raise Refusal("undecodable", "a video was wanted, what came is empty")
            seconds = time.perf_counter() - started
            yield Upload(path=named, sha256=sha256, size_bytes=size, seconds=seconds)

    @contextmanager
    def _new_file(self) -> Iterator[Any]:
        """A file for the block; it is no error if the folder is gone before its end, as when the service is stopped."""
        file = tempfile.NamedTemporaryFile(dir=self._folder, prefix="upload-", delete=False)  # noqa: SIM115
        try:
            with file:
                yield file
        finally:
            Path(file.name).unlink(missing_ok=True)

    def _refuse_size(self, request: Request, *, more: int) -> None:
        text = request.headers.get("content-length", "0")
        if text.isdecimal() and int(text) > self._limits.body_bytes + more:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal("too_large", f"a video of at most {self._limits.body_bytes} bytes was wanted, this is larger")

    async def _write_body(
        self, request: Request, file: BinaryIO | Any, *, media: str, options: dict[bytes, bytes]
    ) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0

        def write(part: bytes) -> None:
            nonlocal size
            size += len(part)
            if size > self._limits.body_bytes:
                raise self._too_large()
            digest.update(part)
            file.write(part)

        if media == "multipart/form-data":
            form = _Form(options.get(b"boundary", b""), write=write)
            async for part in self._parts(request, limit=self._limits.body_bytes + _ENVELOPE_BYTES):
                form.add(part)
            form.end()
        else:
            async for part in self._parts(request, limit=self._limits.body_bytes):
                write(part)
        file.flush()
        return digest.hexdigest(), size

    async def _parts(self, request: Request, *, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes, at most so many bytes of it."""
        clock = asyncio.get_running_loop().time
        limits, ends, size = self._limits, clock() + self._limits.receive_seconds, 0
        while True:
            wait = min(limits.silence_seconds, ends - clock())
            try:
                message = await asyncio.wait_for(request.receive(), max(wait, 0))
            except TimeoutError:
                raise Refusal(
                    "slow_sender",
                    f"a body was wanted within {limits.receive_seconds:g} s, no part of it later than "
                    f"{limits.silence_seconds:g} s after the one before: this came slower",
                ) from None
            if message["type"] == "http.disconnect":
                raise Refusal("client_gone", "the client is gone")
            part = message.get("body", b"")
            size += len(part)
            self.received_bytes += len(part)
            if size > limit:
                raise self._too_large()
            if part:
                yield part
            if not message.get("more_body", False):
                return

    async def _named_file(self, request: Request, copy: Path) -> Path:
        """The file that a body of JSON names, on this machine."""
        if not self._uris:
            raise Refusal("wrong_media", "this service takes no URIs: send the video itself, as video/mp4 for instance")
        content = b"".join([part async for part in self._parts(request, limit=_ENVELOPE_BYTES)])
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        uri = values.get("uri") if isinstance(values, dict) and len(values) == 1 else None
        if not isinstance(uri, str):
            raise Refusal("bad_parameter", 'a body of {"uri": "..."} was wanted, this is another')
        return await asyncio.to_thread(self._fetch, uri, copy)

    def _fetch(self, uri: str, copy: Path) -> Path:
        try:
            if not any(storage.contains(allowed, uri) for allowed in self._uris):
                raise Refusal("uri_unreadable", "this URI is not below those that the service may read")
            location = storage.absolute(uri)
            if not storage.is_s3(location):
                with storage.on_disk(location, limit_bytes=self._limits.body_bytes) as path:
                    return path
            storage.copy_to_disk(location, copy, limit_bytes=self._limits.body_bytes)
        except (StorageError, OSError, ValueError) as error:
            limit = self._limits.body_bytes
            raise Refusal("uri_unreadable", f"the URI cannot be read as a file of at most {limit} bytes") from error
        return copy


class _Form:
    """The one file `video` of a multipart form, passed on as it comes."""

    def __init__(self, boundary: bytes, *, write: Callable[[bytes], None]) -> None:
        if not 0 < len(boundary) <= 256:
            raise Refusal("bad_parameter", "a multipart form wants a boundary, its Content-Type names none")
        self._write = write
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._files, self._is_whole = 0, False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._gather(self._name, data[start:end]),
                "on_header_value": lambda data, start, end: self._gather(self._value, data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._look,
                "on_part_data": lambda data, start, end: self._write(data[start:end]),
                "on_end": self._ended,
            },
        )

    def add(self, part: bytes) -> None:
        """The next bytes of the body."""
        try:
            self._parser.write(part)
        except MultipartParseError:
            raise Refusal("bad_parameter", "a multipart form was wanted, the body is none") from None

    def end(self) -> None:
        """The body is at its end: so must the form be."""
        if not self._files or not self._is_whole:
            raise Refusal("bad_parameter", "a multipart form with a file `video` was wanted, it has none or is cut off")

    def _begin(self) -> None:
        self._headers = {}

    def _gather(self, into: bytearray, part: bytes) -> None:
        into += part
        if len(into) > _HEADER_BYTES:
            raise Refusal("bad_parameter", "a multipart form was wanted, a header of it has no end")

    def _header(self) -> None:
        if len(self._headers) > 16:
            raise Refusal("bad_parameter", "a multipart form was wanted, a part of it has too many headers")
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _look(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"")
        if name != b"video" or self._files:
            raise Refusal("bad_parameter", "a multipart form with one file `video` and nothing else was wanted")
        self._files += 1

    def _ended(self) -> None:
        self._is_whole = True


def _media_type(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """What a body is, one of raw, form and JSON, and the options of that.

    Raises:
        Refusal: something else.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal("wrong_media", "a video as it is was wanted, its Content-Encoding says that it is packed")
    given, options = parse_options_header(request.headers.get("content-type"))
    media = given.decode("latin-1").strip().lower()
    if media.startswith("video/") or media == _RAW:
        return _RAW, options
    if media in ("multipart/form-data", "application/json"):
        return media, options
    raise Refusal("wrong_media", f"a Content-Type of {_TAKEN} was wanted, got {media[:100] or 'none'}")


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
