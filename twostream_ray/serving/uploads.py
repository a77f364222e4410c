"""Streaming uploads: a request body is written to a file as it arrives, with limits of size and time.

The body is the raw video, a multipart form with the video as its file, or JSON with a URI to read it from.
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
"""Maximum size of a form's parts around its file, and of a JSON body."""
_HEADER_BYTES = 8 << 10
_RAW = "application/octet-stream"
_ACCEPTED = "video/*, application/octet-stream, multipart/form-data with a file `video`, or application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A received video."""

    path: Path
    """Its temporary file, removed at the end of the request."""
    sha256: str
    """Of the content."""
    size_bytes: int
    seconds: float
    """Time until it was received."""


class Receiver:
    """Receives request bodies into files, a limited number at a time."""

    def __init__(self, folder: Path, *, limits: LimitsConfig, uris: Sequence[str]) -> None:
        """Write into the folder; accept the given URI prefixes."""
        self._folder, self._limits, self._uris = folder, limits, uris
        self.receiving = 0
        """Bodies that are being received."""
        self.received_bytes = 0
        """Total since the start."""

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[Upload]:
        """The video of a request; its file exists within the `async with` block.

        Raises:
            Refusal: wrong media type, too large, too slow, or not readable.
        """
        media, options = _media_type(request)
        self._refuse_size(request, more=0 if media == _RAW else _ENVELOPE_BYTES)
        if self.receiving >= self._limits.receiving:
            raise Refusal("busy", "too many videos are being uploaded: try again", headers={"Retry-After": "5"})
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
                raise Refusal("undecodable", "a video was wanted, the body is empty")
            seconds = time.perf_counter() - started
            yield Upload(path=named, sha256=sha256, size_bytes=size, seconds=seconds)

    @contextmanager
    def _new_file(self) -> Iterator[Any]:
        """A temporary file; when the service stops, the folder may be removed before it."""
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
        """The chunks of the body, up to a limit in bytes."""
        clock = asyncio.get_running_loop().time
        limits, ends, size = self._limits, clock() + self._limits.receive_seconds, 0
        while True:
            wait = min(limits.silence_seconds, ends - clock())
            try:
                message = await asyncio.wait_for(request.receive(), max(wait, 0))
            except TimeoutError:
                raise Refusal(
                    "slow_sender",
                    f"a body must arrive within {limits.receive_seconds:g} s and never pause for more than "
                    f"{limits.silence_seconds:g} s, this one was slower",
                ) from None
            if message["type"] == "http.disconnect":
                raise Refusal("client_gone", "the client has disconnected")
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
        """A local copy of the file that a JSON body names by its URI."""
        if not self._uris:
            raise Refusal(
                "wrong_media", "this service accepts no URIs: send the video itself, for instance as video/mp4"
            )
        content = b"".join([part async for part in self._parts(request, limit=_ENVELOPE_BYTES)])
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        uri = values.get("uri") if isinstance(values, dict) and len(values) == 1 else None
        if not isinstance(uri, str):
            raise Refusal("bad_parameter", 'a JSON body of {"uri": "..."} was wanted, got another one')
        return await asyncio.to_thread(self._fetch, uri, copy)

    def _fetch(self, uri: str, copy: Path) -> Path:
        try:
            if not any(storage.contains(allowed, uri) for allowed in self._uris):
                raise Refusal("uri_unreadable", "the service may not read this URI: it is under none of its `uris`")
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
    """Streaming parser of a multipart form whose only part is the file `video`."""

    def __init__(self, boundary: bytes, *, write: Callable[[bytes], None]) -> None:
        if not 0 < len(boundary) <= 256:
            raise Refusal("bad_parameter", "a multipart form needs a boundary, the Content-Type has none")
        self._write = write
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._files, self._is_complete = 0, False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._append(self._name, data[start:end]),
                "on_header_value": lambda data, start, end: self._append(self._value, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._check_disposition,
                "on_part_data": lambda data, start, end: self._write(data[start:end]),
                "on_end": self._complete,
            },
        )

    def add(self, part: bytes) -> None:
        """Parse the next bytes of the body."""
        try:
            self._parser.write(part)
        except MultipartParseError:
            raise Refusal("bad_parameter", "a multipart form was wanted, the body is malformed") from None

    def end(self) -> None:
        """Check at the end of the body that the form is complete."""
        if not self._files or not self._is_complete:
            raise Refusal(
                "bad_parameter", "a multipart form with a file `video` was wanted, it has none or is truncated"
            )

    def _begin(self) -> None:
        self._headers = {}

    def _append(self, into: bytearray, part: bytes) -> None:
        into += part
        if len(into) > _HEADER_BYTES:
            raise Refusal(
                "bad_parameter", f"a multipart form was wanted, a header in it is longer than {_HEADER_BYTES} bytes"
            )

    def _end_header(self) -> None:
        if len(self._headers) > 16:
            raise Refusal("bad_parameter", "a multipart form was wanted, a part of it has more than 16 headers")
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _check_disposition(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"")
        if name != b"video" or self._files:
            raise Refusal("bad_parameter", "a multipart form with one file `video` and nothing else was wanted")
        self._files += 1

    def _complete(self) -> None:
        self._is_complete = True


def _media_type(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """The media type of a body, raw video, form or JSON, with its parameters.

    Raises:
        Refusal: another media type, or a compressed body.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal("wrong_media", f"a body without Content-Encoding was wanted, got {encoding[:60]!r}")
    given, options = parse_options_header(request.headers.get("content-type"))
    media = given.decode("latin-1").strip().lower()
    if media.startswith("video/") or media == _RAW:
        return _RAW, options
    if media in ("multipart/form-data", "application/json"):
        return media, options
    raise Refusal("wrong_media", f"a Content-Type of {_ACCEPTED} was wanted, got {media[:100] or 'none'}")


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
