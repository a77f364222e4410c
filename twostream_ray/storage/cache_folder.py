"""Cache directories, marked by CACHEDIR.TAG (Cache Directory Tagging Specification) so that no other is used as one."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from twostream_ray.errors import StorageError
from twostream_ray.storage.temporary_folders import own_folder, own_folder_path

TAG = "CACHEDIR.TAG"
_TAG_CONTENT = b"""Signature: 8a477f597d28d172789f06886806bc55
# This file marks a cache of twostream_ray: whatever else is here may be deleted at any moment.
"""
_LEFT_BY_OURS = re.compile(r"[0-9a-f]{64}\.(partial|lock)|lock")

LEFT_FREE = 0.05
"""Fraction of a disk that caches leave free: below it, Ray stops spilling objects to the disk."""

_log = logging.getLogger(__name__)


def claim(directory: Path, *, setting: str) -> None:
    """Create the cache directory that a `setting` names, or check that it is one.

    Raises:
        StorageError: it cannot be created, or has other files.
    """
    if directory.parent.name == own_folder_path().name:  # its parent is writable by every user
        own_folder(directory.parent)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if _is_tagged(directory):
            return
        others = sorted(path.name for path in directory.iterdir() if not _LEFT_BY_OURS.fullmatch(path.name))
        # Another process may have created it in between.
        if others and not _is_tagged(directory):
            raise StorageError(
                f"{setting} needs a directory of its own, {directory} has other files, as {others[0]}: set a new or "
                "empty one"
            )
        with suppress(FileExistsError), new_file(directory / TAG) as file:
            file.write(_TAG_CONTENT)
    except OSError as error:
        raise StorageError(
            f"{setting} must be a writable directory, got {directory} ({error.strerror}): set another, or leave it out"
        ) from error


def reason_to_add_nothing(directory: Path, size: int) -> str | None:
    """Why `size` more bytes do not fit on a cache's disk; None if they do.

    Raises:
        OSError: the directory does not exist.
    """
    disk = shutil.disk_usage(directory)
    if disk.free - size >= LEFT_FREE * disk.total:
        return None
    return f"its disk has {disk.free / 1e9:.1f} GB free, and {LEFT_FREE:.0%} of {disk.total / 1e9:.0f} GB are left free"


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning only once per process, as it could recur for every clip or shard."""
    _log.warning("%s", message)


def _is_tagged(directory: Path) -> bool:
    try:
        with opened(directory / TAG) as file:
            return file.read(len(_TAG_CONTENT)) == _TAG_CONTENT
    except FileNotFoundError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """Open a regular file for unbuffered reading, without following symbolic links.

    Raises:
        OSError: it does not exist, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(f"{path} is no regular file")
        yield file


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Create a file exclusively and open it for writing, without following symbolic links.

    Raises:
        FileExistsError: the path exists.
        OSError: it cannot be created.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        yield file
