"""Local paths, file:// and s3:// URIs as one kind of place: read, write whole, list, delete.

Reading goes through pyarrow.fs (about twice as fast as s3fs on large objects), listing and upload through s3fs.
Endpoint, region and credentials of S3 come from the usual environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY) and AWS's own files. A store that is away or answers with errors is asked again for a minute.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from twostream_ray.errors import AccessError, StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


_PATIENCE_S = 60.0
_LONGEST_PAUSE_S = 8.0
_REQUEST_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 5
_SLOWEST_BYTES_S = 1e6
_PART_BYTES = 16 << 20
_DENIED = re.compile(r"ACCESS_DENIED|SignatureDoesNotMatch|INVALID_ACCESS_KEY|InvalidAccessKey|Forbidden|\b403\b", re.I)
_ABSENT = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist", re.I)
_NO_CREDENTIALS = "NoCredentialsError"

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def is_s3(uri: str) -> bool:
    """Whether the place is an object store rather than this machine's disk."""
    return uri.startswith("s3://")


def absolute(uri: str | Path) -> str:
    """The place's full name: an s3:// URI unchanged, anything else an absolute local path.

    Raises:
        StorageError: the scheme is neither file:// nor s3://, or s3:// names no bucket.
    """
    text = str(uri)
    if is_s3(text):
        if not text[len("s3://") :].strip("/"):
            raise StorageError(f"a bucket was wanted behind s3://, got {text!r}")
        return text.rstrip("/")
    if text.startswith("file://"):
        text = text[len("file://") :]
    elif "://" in text:
        raise StorageError(f"a place is a local path, file:// or s3:// URI, got {text!r}")
    return str(Path(text).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """The place `parts` below `uri`."""
    return "/".join([uri.rstrip("/"), *parts])


def contains(outer: str, inner: str) -> bool:
    """Whether a place is another one or lies in it, by whatever name: through links, `..`, a second mount, other case.

    Raises:
        StorageError: a scheme is neither file:// nor s3://.
    """
    outer, inner = absolute(outer), absolute(inner)
    if is_s3(outer) or is_s3(inner):
        wide, narrow = ([part for part in place.split("/") if part] for place in (outer, inner))
        return narrow[: len(wide)] == wide
    wide_path, narrow_path = Path(os.path.realpath(outer)), Path(os.path.realpath(inner))
    if narrow_path.is_relative_to(wide_path):
        return True
    with suppress(OSError):
        mark = wide_path.stat()
        return any(folder.exists() and os.path.samestat(folder.stat(), mark) for folder in narrow_path.parents)
    return False


@lru_cache(maxsize=2)
def _s3_for_reading(max_attempts: int) -> FileSystem:
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=max_attempts),
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "request_timeout": _REQUEST_TIMEOUT_S,
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host, "scheme": scheme or "https"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or endpoint:
        options["region"] = region or "us-east-1"
    return fs.S3FileSystem(**options)


def _s3_for_writing() -> Any:
    import s3fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return s3fs.S3FileSystem(
        endpoint_url=endpoint,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _REQUEST_TIMEOUT_S,
            "retries": {"mode": "standard", "max_attempts": 2},
        },
    )


def filesystem(uri: str, *, patient: bool = False) -> tuple[FileSystem, str]:
    """The pyarrow filesystem a place lies on, and its path there; a patient one asks again for about a minute itself.

    Everything here waits by `patiently` instead; libraries that are handed the filesystem cannot.
    """
    from pyarrow import fs

    place = absolute(uri)
    if is_s3(place):
        return _s3_for_reading(10 if patient else 3), place[len("s3://") :]
    return fs.LocalFileSystem(), place


def patiently(action: Callable[[], _Result], *, place: str) -> _Result:
    """Do something with a place; on s3:// do it again for a minute while the store is away or answers with errors.

    What no waiting mends is raised at once: a missing object, refused credentials.
    """
    if not is_s3(place):
        return action()
    started, pause = time.monotonic(), 0.5
    while True:
        try:
            return action()
        except Exception as error:
            spent = time.monotonic() - started
            if not _passes(error) or spent + pause > _PATIENCE_S:
                raise
            _log.warning(
                "%s: the store does not answer (%s), trying again for %.0f s", place, _brief(error), _PATIENCE_S - spent
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _passes(error: Exception) -> bool:
    """Whether waiting may help."""
    return _is_of_the_store(error) and not (_is_absent(error) or _is_denied(error))


def _is_of_the_store(error: Exception) -> bool:
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    return isinstance(error, OSError | BotoCoreError | ClientError)


def _is_absent(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or bool(_ABSENT.search(str(error)))


def _is_denied(error: Exception) -> bool:
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ == _NO_CREDENTIALS
        or bool(_DENIED.search(str(error)))
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _explained(action: str, uri: str, work: Callable[[], _Result]) -> _Result:
    try:
        return patiently(work, place=uri)
    except Exception as error:
        if not (isinstance(error, OSError) or (is_s3(uri) and _is_of_the_store(error))):
            raise
        if _is_absent(error):
            raise AccessError(f"cannot {action} {uri}: it is not there; check the path") from error
        if _is_denied(error):
            # To a store that denies one object all are denied: that is no fault of a single video.
            kind = StorageError if is_s3(uri) else AccessError
            raise kind(
                f"cannot {action} {uri}: access denied; check the rights of the path, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY for s3://"
            ) from error
        waited = f" (tried for {_PATIENCE_S:.0f} s; check AWS_ENDPOINT_URL and the network)" if is_s3(uri) else ""
        raise StorageError(f"cannot {action} {uri}: {_brief(error)}{waited}") from error


def read_bytes(uri: str, *, limit_bytes: int | None = None) -> bytes:
    """The whole content of a regular file; of a FIFO or device reading might never end.

    Raises:
        StorageError: the file is missing, cannot be read, is no regular file or larger than `limit_bytes`.
    """

    def read() -> bytes:
        # open_input_file reads in one request; open_input_stream would split it into many small ones.
        with open_regular(uri) as file:
            size = file.size()
            if limit_bytes is not None and size > limit_bytes:
                raise StorageError(f"cannot read {uri}: at most {limit_bytes} bytes were wanted, it has {size}")
            content: bytes = file.read()
            return content

    return _explained("read", uri, read)


def open_regular(uri: str) -> Any:
    """A regular file of a disk or a store, open for reading at random places, as a pyarrow.NativeFile.

    Raises:
        OSError: the file is missing or cannot be read.
        AccessError: it is a directory, FIFO or device.
    """
    _refuse_special(uri)
    system, path = filesystem(uri)
    return system.open_input_file(path)


def _refuse_special(uri: str) -> None:
    """A local path that is there must be a regular file, or a link to one."""
    place = absolute(uri)
    if is_s3(place):
        return
    mode = Path(place).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO, socket or device"
        raise AccessError(f"cannot read {uri}: a regular file was wanted, it is {kind}")


@contextmanager
def on_disk(uri: str) -> Iterator[Path]:
    """The file on this machine: itself, or of s3:// a copy that goes at the end; never in memory as a whole.

    Raises:
        StorageError: the file is missing or cannot be read.
    """
    place = absolute(uri)
    if not is_s3(place):
        _explained("read", uri, lambda: Path(place).open("rb").close())
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="twostream-") as folder:
        copy = Path(folder) / "copy"
        copy_to_disk(place, copy)
        yield copy


def copy_to_disk(uri: str, path: Path) -> None:
    """Copy a file to this machine, part by part.

    Raises:
        StorageError: the file is missing or cannot be read.
    """

    def fetch() -> None:
        system, name = filesystem(uri)
        with system.open_input_file(name) as file, path.open("wb") as copy:
            while part := file.read(_PART_BYTES):
                copy.write(part)

    _explained("read", uri, fetch)


def read_text(uri: str) -> str:
    """The whole content of a UTF-8 text file.

    Raises:
        StorageError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StorageError(f"cannot read {uri}: a UTF-8 text was wanted, byte {error.start} is not") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file whole: readers see the old content or the new, never a part.

    Raises:
        StorageError: the place cannot be written.
    """
    place = absolute(uri)

    def write() -> None:
        if is_s3(place):
            # A server that accepts and says nothing passes by the client's own time-outs.
            _s3_for_writing().pipe_file(place, content, timeout=_REQUEST_TIMEOUT_S + len(content) / _SLOWEST_BYTES_S)
        else:
            _replace(Path(place), lambda file: file.write(content))

    _explained("write", uri, write)


def write_new(uri: str, content: bytes) -> bool:
    """Write a file of s3:// only if there is none, where the store knows `If-None-Match`; gives whether it was written.

    A store that does not know it writes in any case. An answer that was lost is asked for again, and then says that the
    file is there: who needs to be sure reads it.

    Raises:
        StorageError: the place cannot be written.
    """
    place = absolute(uri)

    def write() -> bool:
        try:
            _s3_for_writing().pipe_file(place, content, mode="create", timeout=_REQUEST_TIMEOUT_S)
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
        StorageError: the place cannot be written.
    """
    write_bytes(uri, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def write_file(uri: str, source: Path) -> None:
    """Write a file whole as `write_bytes` does, a copy of one on this machine that need not fit into memory.

    Raises:
        StorageError: the place cannot be written.
    """
    place = absolute(uri)

    def write() -> None:
        if is_s3(place):
            timeout = _REQUEST_TIMEOUT_S + source.stat().st_size / _SLOWEST_BYTES_S
            _s3_for_writing().put_file(str(source), place, max_concurrency=2, timeout=timeout)
            return
        with source.open("rb") as content:
            _replace(Path(place), lambda file: shutil.copyfileobj(content, file, _PART_BYTES))

    _explained("write", uri, write)


def _replace(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    """Whether there is a file or directory.

    Raises:
        StorageError: the store cannot be asked.
    """
    place = absolute(uri)
    return _explained(
        "look up", uri, lambda: bool(_s3_for_writing().exists(place)) if is_s3(place) else Path(place).exists()
    )


def list_files(uri: str, *, empty_directories: bool = False) -> Iterator[tuple[str, int]]:
    """Every file below a directory or prefix, in order of name: (relative posix path, size in bytes).

    A local directory without content is listed as ("path/", 0) when `empty_directories` asks for it.

    Raises:
        StorageError: the directory is missing or cannot be read.
    """
    place = absolute(uri)

    def listed() -> list[tuple[str, int]]:
        if is_s3(place):
            prefix = place[len("s3://") :].rstrip("/") + "/"
            found = _s3_for_writing().find(place, detail=True)
            if not found:
                raise FileNotFoundError(uri)
            return sorted((name[len(prefix) :], int(entry["size"])) for name, entry in found.items())
        root = Path(place)
        if not root.is_dir():
            raise FileNotFoundError(uri)
        entries = []
        for folder, folders, files in os.walk(root, followlinks=True):
            below = Path(folder).relative_to(root)
            entries += [((below / name).as_posix(), (Path(folder) / name).stat().st_size) for name in files]
            if empty_directories and not folders and not files:
                entries.append((f"{below.as_posix()}/", 0))
        return sorted(entries)

    yield from _explained("list", uri, listed)


def delete(uri: str) -> None:
    """Remove one file; none there is no error.

    Raises:
        StorageError: the place cannot be written.
    """
    place = absolute(uri)

    def remove() -> None:
        if is_s3(place):
            store = _s3_for_writing()
            if store.exists(place):
                store.rm_file(place)
        else:
            Path(place).unlink(missing_ok=True)

    _explained("delete", uri, remove)
