"""One interface to local paths, file:// and s3:// URIs: read, write atomically, list, delete; retries with backoff.

Reading goes through pyarrow.fs (about twice as fast as s3fs on large objects), listing and upload through s3fs.
Endpoint, region and credentials of S3 come from the usual environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY) and AWS's own files. A store that is away or answers with errors is retried for a minute.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

from twostream_ray.errors import AccessError, MissingError, StorageError
from twostream_ray.redaction import has_credentials, printable
from twostream_ray.storage import local_files, object_store
from twostream_ray.storage.local_files import FILE_URI, LeftOut
from twostream_ray.storage.temporary_folders import temporary_folder

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


_PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_SLOWEST_BYTES_S = 1e6
_LIMIT_BYTES = 8 << 30

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def is_s3(uri: str) -> bool:
    """Whether it is an object of a store rather than a file of this machine."""
    return uri.startswith("s3://")


def absolute(uri: str | Path) -> str:
    """The full name: an s3:// URI unchanged, anything else an absolute local path.

    A file:// URI is percent-encoded, as RFC 8089 has it; a local path and an s3:// URI are taken as they are.

    Raises:
        StorageError: the scheme is neither file:// nor s3://, s3:// names no bucket or holds credentials, or the
                name is no text.
    """
    text = str(uri)
    if is_s3(text):
        if not text[len("s3://") :].strip("/"):
            raise StorageError(f"expected a bucket after s3://, got {text!r}")
        if has_credentials(text):
            raise StorageError(
                f"expected s3://BUCKET/KEY, got {text!r}: credentials come from AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, never from a URI, which is written down in many places"
            )
        if object_store.VERSION in text:
            raise StorageError(f"expected a key without {object_store.VERSION}, got {printable(text)}: rename it")
        text = text.rstrip("/")
    elif scheme := FILE_URI.match(text):
        text = os.fsdecode(unquote_to_bytes(text[scheme.end() :]))
    elif "://" in text:
        raise StorageError(f"expected a local path, file:// or s3:// URI, got {text!r}")
    if "\0" in text or any(0xD800 <= ord(sign) <= 0xDFFF for sign in text):
        raise StorageError(f"a path is UTF-8 without zero bytes, got {printable(text)}: rename it")
    if is_s3(text):
        return text
    try:
        # os.path leaves ~old alone if there is no user of that name.
        return str(Path(os.path.expanduser(text)).absolute())  # noqa: PTH111
    except FileNotFoundError as error:
        raise StorageError(
            f"the working directory no longer exists, so {printable(text)} cannot be resolved: change to another"
        ) from error


def join(uri: str, *parts: str) -> str:
    """The path or URI of `parts` below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or below it, by any name: through links, `..`, a second mount, other case.

    Raises:
        StorageError: a scheme is neither file:// nor s3://.
    """
    outer, inner = absolute(outer), absolute(inner)
    if is_s3(outer) or is_s3(inner):
        wide, narrow = ([part for part in uri.split("/") if part] for uri in (outer, inner))
        return narrow[: len(wide)] == wide
    return local_files.contains(Path(outer), Path(inner))


def filesystem(uri: str, *, patient: bool = False) -> tuple[FileSystem, str]:
    """The pyarrow filesystem of a URI, and the path on it; a patient one retries for about a minute itself.

    Everything here waits by `patiently` instead; libraries that are handed the filesystem cannot.
    """
    from pyarrow import fs

    path = absolute(uri)
    if is_s3(path):
        return object_store.reader(10 if patient else 3), path[len("s3://") :]
    return fs.LocalFileSystem(), path


def patiently(action: Callable[[], _Result], *, uri: str) -> _Result:
    """Run an action on a URI; on s3:// retry transient errors with exponential backoff for a minute.

    Permanent errors, such as a missing object or refused credentials, are raised at once.
    """
    if not is_s3(uri):
        return action()

    def warn(attempt: RetryCallState) -> None:
        error = attempt.outcome and attempt.outcome.exception()
        assert error and attempt.seconds_since_start is not None  # noqa: S101  (it has failed)
        _log.warning(
            "%s: the store does not answer (%s), trying again for %.0f s",
            uri,
            object_store.error_message(error),
            _PATIENCE_S - attempt.seconds_since_start,
        )

    retrying = Retrying(
        retry=retry_if_exception(lambda error: object_store.is_transient(error, uri=uri)),
        wait=wait_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        stop=stop_before_delay(_PATIENCE_S),
        before_sleep=warn,
        reraise=True,
    )
    return retrying(action)


def _explained(action: str, uri: str, work: Callable[[], _Result]) -> _Result:
    path, named = absolute(uri), f"cannot {action} {printable(str(uri))}"
    try:
        return patiently(work, uri=path)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise AccessError(f"{named}: it does not fit into memory") from error
        if not (object_store.is_of_the_store(error) if is_s3(path) else isinstance(error, OSError)):
            raise
        if isinstance(error, OSError) and not is_s3(path):
            raise local_files.explained(error, named, path=Path(path)) from error
        if object_store.is_absent(error, uri=path):
            raise MissingError(f"{named}: it does not exist; check the path") from error
        if object_store.is_denied(error, uri=path):
            # Not an AccessError: denied credentials concern all objects, not a single video.
            raise StorageError(
                f"{named}: access denied; check the permissions of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY there"
            ) from error
        waited = f"(tried for {_PATIENCE_S:.0f} s; check AWS_ENDPOINT_URL and the network)"
        raise StorageError(f"{named}: {object_store.error_message(error)} {waited}") from error


def read_bytes(uri: str, *, limit_bytes: int = _LIMIT_BYTES) -> bytes:
    """The content of a regular file; FIFOs and devices are refused, as reading might never end.

    Raises:
        StorageError: the file is missing, cannot be read, is no regular file or larger than `limit_bytes`.
    """
    location = absolute(uri)

    def read() -> bytes:
        if not is_s3(location):
            with local_files.open_regular(Path(location), limit_bytes=limit_bytes) as local:
                return local.read(os.fstat(local.fileno()).st_size)
        system, path = filesystem(location)
        # open_input_file reads in one request; open_input_stream would split it into many small ones.
        with system.open_input_file(path) as file:
            local_files.refuse_larger(file.size(), uri, limit_bytes=limit_bytes)
            content: bytes = file.read()
            return content

    return _explained("read", uri, read)


def open_regular(uri: str) -> Any:
    """A regular file of a disk or a store, open for random access, as a pyarrow.NativeFile.

    Raises:
        OSError: the file is missing or cannot be read.
        AccessError: it is a directory, FIFO or device.
    """
    location = absolute(uri)
    if not is_s3(location):
        local_files.refuse_special(Path(location))
    system, path = filesystem(location)
    return system.open_input_file(path)


@contextmanager
def on_disk(uri: str, *, limit_bytes: int | None = None) -> Iterator[Path]:
    """Path of the file on this machine: itself, or a temporary copy of an s3:// object; streamed, not held in memory.

    Raises:
        StorageError: the file is missing, cannot be read, is no regular file or larger than `limit_bytes`.
    """
    path = absolute(uri)
    if not is_s3(path):
        _explained("read", uri, lambda: local_files.open_regular(Path(path), limit_bytes=limit_bytes).close())
        yield Path(path)
        return
    with temporary_folder() as folder:
        copy = Path(folder) / "copy"
        copy_to_disk(path, copy, limit_bytes=limit_bytes)
        yield copy


def copy_to_disk(uri: str, path: Path, *, limit_bytes: int | None = None) -> None:
    """Copy a file to this machine, part by part.

    Raises:
        StorageError: the file is missing, cannot be read, is no regular file or larger than `limit_bytes`, or `path`
            cannot be written.
    """
    location = absolute(uri)

    def fetch() -> None:
        if not is_s3(location):
            with local_files.open_regular(Path(location), limit_bytes=limit_bytes) as local:
                local_files.write_parts(local.read, path)
            return
        system, name = filesystem(location)
        with system.open_input_file(name) as file:
            local_files.refuse_larger(file.size(), uri, limit_bytes=limit_bytes)
            local_files.write_parts(file.read, path)

    _explained("read", uri, fetch)


def read_text(uri: str) -> str:
    """The whole content of a UTF-8 text file.

    Raises:
        StorageError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StorageError(f"cannot read {uri}: expected UTF-8 text, byte {error.start} is invalid") from error


def require_writable(uri: str) -> None:
    """Check early that a local file can be written; s3:// URIs are not checked.

    Raises:
        StorageError: it cannot, or the disk is full.
    """
    path = absolute(uri)
    if not is_s3(path):
        _explained("write", uri, lambda: local_files.require_writable(Path(path)))


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part.

    Raises:
        StorageError: it cannot be written.
    """
    path = absolute(uri)

    def write() -> None:
        if is_s3(path):
            # The client's own timeouts do not cover a server that accepts the data and never responds.
            object_store.writer().pipe_file(
                path, content, timeout=object_store.REQUEST_TIMEOUT_S + len(content) / _SLOWEST_BYTES_S
            )
        else:
            local_files.replace(Path(path), lambda file: file.write(content))

    _explained("write", uri, write)


def write_new(uri: str, content: bytes) -> bool:
    """Write a file of s3:// only if there is none (conditional write, `If-None-Match`); returns whether it was written.

    A store without conditional writes writes in any case. A request whose answer was lost is repeated, and then finds
    the file there: a caller that needs to be sure reads it.

    Raises:
        StorageError: it cannot be written.
    """
    path = absolute(uri)

    def write() -> bool:
        try:
            object_store.writer().pipe_file(path, content, mode="create", timeout=object_store.REQUEST_TIMEOUT_S)
        except OSError as error:
            answer = getattr(error.__cause__, "response", {})
            if answer.get("Error", {}).get("Code") not in ("PreconditionFailed", "412"):
                raise
            return False
        return True

    return _explained("write", uri, write)


def write_json(uri: str, values: Any) -> None:
    """Write values as a JSON file that people can read: indented, keys sorted, the same bytes for the same values.

    Raises:
        StorageError: it cannot be written.
    """
    write_bytes(uri, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def write_file(uri: str, source: Path) -> None:
    """Write a file whole as `write_bytes` does, a copy of one on this machine that need not fit into memory.

    Raises:
        StorageError: it cannot be written.
    """
    path = absolute(uri)

    def write() -> None:
        if is_s3(path):
            timeout = object_store.REQUEST_TIMEOUT_S + source.stat().st_size / _SLOWEST_BYTES_S
            object_store.writer().put_file(str(source), path, max_concurrency=2, timeout=timeout)
            return
        with source.open("rb") as content:
            local_files.replace(Path(path), lambda file: shutil.copyfileobj(content, file, local_files.PART_BYTES))

    _explained("write", uri, write)


def exists(uri: str) -> bool:
    """Whether a file or directory exists.

    Raises:
        StorageError: that cannot be looked up.
    """
    path = absolute(uri)

    def look() -> bool:
        return bool(object_store.writer().exists(path)) if is_s3(path) else local_files.exists(Path(path))

    return _explained("look up", uri, look)


def list_files(uri: str, *, empty_directories: bool = False) -> Iterator[tuple[str, int]]:
    """Every regular file below a directory or prefix, in order of name: (relative posix path, size in bytes).

    A local directory without content is listed as ("path/", 0) when `empty_directories` asks for it.

    Raises:
        StorageError: the directory is missing or cannot be read, or one below it.
    """
    for entry in list_entries(uri):
        if not isinstance(entry, LeftOut) and (empty_directories or is_s3(uri) or not entry[0].endswith("/")):
            yield entry


def list_entries(uri: str) -> Iterator[tuple[str, int] | LeftOut]:
    """All entries below a directory or prefix, in order of name: files, empty directories, and what is neither.

    Raises:
        StorageError: the directory is missing or cannot be read, or one below it.
    """
    path = absolute(uri)

    def listed() -> list[tuple[str, int] | LeftOut]:
        found = object_store.list_below(path) if is_s3(path) else local_files.walk(Path(path))
        return sorted(found, key=lambda entry: entry[0])

    yield from _explained("list", uri, listed)


def delete(uri: str) -> None:
    """Remove one file; a missing one is not an error, and a directory is never removed.

    Raises:
        StorageError: it cannot be deleted, or is no file.
    """
    path = absolute(uri)

    def remove() -> None:
        if is_s3(path):
            store = object_store.writer()
            if store.exists(path):
                store.rm_file(path)
        else:
            local_files.remove(Path(path))

    _explained("delete", uri, remove)
