"""File locks (flock) between the processes of a machine, released when their holder is killed.

Symbolic links are not followed, a lock must be a regular file, and the file is removed at the end of the block.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from twostream_ray.errors import StorageError
from twostream_ray.storage.temporary_folders import open_own_folder, own_folder_path

_POLL_S = 0.1


@contextmanager
def locked(path: Path, *, wait: bool = True, keep: bool = False, required: bool = True) -> Iterator[BinaryIO]:
    """Create, open and lock a file for the block; it is removed afterwards unless `keep` is set.

    On a network disk without locks a lock that is not `required` is passed over.

    Raises:
        BlockingIOError: another process or thread holds it, and `wait` is False.
        StorageError: what is there is a link or no regular file.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = _opened(str(path), named=path, mode=0o666)
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                if required:
                    raise
            if not _is_linked(descriptor, str(path)):
                continue
            try:
                yield file
            finally:
                if not keep and _is_linked(descriptor, str(path)):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
            return


@contextmanager
def process_lock(what: str, *, wait_s: float) -> Iterator[bool]:
    """Run a block that only one process of this machine's user may run at once for the same `what`.

    Yields False where another still runs it after `wait_s` seconds. The lock's file is in the user's own folder, whose
    owner and mode are checked, and is opened relative to it: nothing put in that folder's place is touched.

    Raises:
        StorageError: the user's own folder cannot be had, or what is there is a link or no regular file.
    """
    name = f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock"
    directory = open_own_folder()
    held: int | None = None
    deadline = time.monotonic() + wait_s
    try:
        while held is None and (held := _taken(name, directory)) is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        yield held is not None
    finally:
        if held is not None:
            os.unlink(name, dir_fd=directory)
            os.close(held)
        os.close(directory)


def _taken(name: str, directory: int) -> int | None:
    """A descriptor that holds the lock, or None if another process holds it."""
    path = own_folder_path() / name
    try:
        held = _opened(name, named=path, mode=0o600, directory=directory)
    except OSError as error:
        raise StorageError(f"cannot create the lock file {path}: {error.strerror}; check its directory") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_linked(held, name, directory=directory):
            return held
    except BlockingIOError:
        pass
    except BaseException:
        os.close(held)
        raise
    os.close(held)
    return None


def _opened(name: str, *, named: Path, mode: int, directory: int | None = None) -> int:
    # Non-blocking: opening a FIFO would block.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, mode, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(f"the lock file {named} is a symbolic link: remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"the lock file {named} is not a regular file: remove it")
    return descriptor


def _is_linked(descriptor: int, name: str, *, directory: int | None = None) -> bool:
    """Whether the open file still has this name: after its holder has removed it, it locks nothing."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)
