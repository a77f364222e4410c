"""S3 clients (pyarrow, s3fs), prefix listing, and classification of errors into transient, missing and denied."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from twostream_ray.errors import AccessError
from twostream_ray.redaction import one_line, printable, redact
from twostream_ray.storage.local_files import LeftOut

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

REQUEST_TIMEOUT_S = 60
"""Timeout of a request without a response."""

VERSION = "?versionId="
"""s3fs cuts a key here, and would write or delete another object."""

_CONNECT_TIMEOUT_S = 5
_DENIED = re.compile(r"ACCESS_DENIED|SignatureDoesNotMatch|INVALID_ACCESS_KEY|InvalidAccessKey|Forbidden|\b403\b", re.I)
_ABSENT = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist", re.I)
_OF_AWS = "AWS Error"
"""In what Arrow says of a request that failed, and not of bytes that came."""
_AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTUNREACH)
_NO_CREDENTIALS = "NoCredentialsError"


@lru_cache(maxsize=2)
def reader(max_attempts: int) -> FileSystem:
    """The pyarrow client for reading, which makes up to `max_attempts` requests."""
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=max_attempts),
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host, "scheme": scheme or "https"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or endpoint:
        options["region"] = region or "us-east-1"
    return fs.S3FileSystem(**options)


def writer() -> Any:
    """The s3fs client for listing, writing and deleting."""
    import s3fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return s3fs.S3FileSystem(
        endpoint_url=endpoint,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": REQUEST_TIMEOUT_S,
            "retries": {"mode": "standard", "max_attempts": 2},
        },
    )


def is_transient(error: BaseException, *, uri: str) -> bool:
    """Whether an error may go away on a retry."""
    return is_of_the_store(error) and not (is_absent(error, uri=uri) or is_denied(error, uri=uri))


def is_outage(error: BaseException, *, uri: str) -> bool:
    """Whether the store, or the disk of a local file, was unreachable, as opposed to returning damaged data."""
    if not uri.startswith("s3://"):
        return isinstance(error, OSError) and error.errno in _AWAY
    return is_transient(error, uri=uri) and (_OF_AWS in str(error) or not isinstance(error, OSError))


def is_of_the_store(error: BaseException) -> bool:
    """Whether an error came from the store or the way to it."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    return isinstance(error, OSError | BotoCoreError | ClientError)


def is_absent(error: BaseException, *, uri: str) -> bool:
    """Whether the store says that there is no such object or bucket."""
    return isinstance(error, FileNotFoundError) or bool(_ABSENT.search(_message_without_key(error, uri=uri)))


def is_denied(error: BaseException, *, uri: str) -> bool:
    """Whether the store refuses these credentials, or there are none."""
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ == _NO_CREDENTIALS
        or bool(_DENIED.search(_message_without_key(error, uri=uri)))
    )


def _message_without_key(error: BaseException, *, uri: str) -> str:
    """The store's message without the object's key, which may contain any word or number."""
    path = uri.removeprefix("s3://")
    _, _, key = path.partition("/")
    return str(error).replace(path, "").replace(f"'{key}'", "")


def error_message(error: BaseException) -> str:
    """An error's message in one line."""
    return redact(one_line(str(error) or type(error).__name__, longest=10_000))[:200]


def list_below(uri: str) -> Iterator[tuple[str, int] | LeftOut]:
    """(key below the prefix, size in bytes) of every object; keys that are not paths are skipped."""
    prefix = uri.removeprefix("s3://") + "/"
    found = writer().find(uri, detail=True)
    if not found:
        raise FileNotFoundError(uri)
    for name, entry in found.items():
        path = name.removeprefix(prefix)
        if path == name:
            raise AccessError(f"cannot list {uri}: expected a prefix, found an object; check the path")
        if {"", ".", ".."} & set(path.removesuffix("/").split("/")) or VERSION in path:
            if path:
                yield LeftOut(printable(path), "its key is not a path")
        else:
            yield path, int(entry["size"])
