"""Locks between the processes of a machine, let go by whoever is killed; their files go with them."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from twostream_ray.errors import StorageError


@contextmanager
def locked(path: Path, *, wait: bool = True, keep: bool = False) -> Iterator[BinaryIO]:
    """Hold the lock of a file, which is made if need be, and have it open; it is removed behind, unless to `keep`.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is False.
        StorageError: what lies there is a link or no regular file.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = _opened(path)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever held it before may have removed the file that was opened here: then it locks nothing.
            if not _is_there(descriptor, path):
                continue
            try:
                yield file
            finally:
                if not keep and _is_there(descriptor, path):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
            return


def _opened(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        if path.is_symlink():
            raise StorageError(f"a lock was wanted at {path}, it is a link: remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"a lock was wanted at {path}, it is no regular file: remove it")
    return descriptor


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
