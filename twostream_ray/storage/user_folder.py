"""The user's own folder in the shared temporary directory: mode 0700, owner checked, no link followed; locks in it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from twostream_ray.errors import StorageError


def own_folder(folder: Path | None = None) -> Path:
    """The folder, made if need be, here or where another process of this user has its own.

    Anybody may write beside it, nobody else into it.

    Raises:
        StorageError: what lies there is a link, is somebody else's or open to others, or it cannot be made.
    """
    folder = folder or path()
    os.close(_opened(folder))
    return folder


@contextlib.contextmanager
def locked(what: str, *, wait_s: float) -> Iterator[bool]:
    """Run a block that only one process of this machine's user may run at once for the same `what`.

    Gives False where another still runs it after `wait_s` seconds. The lock file goes with the block.

    Raises:
        StorageError: the user's own folder cannot be had.
    """
    name = f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock"
    directory = _opened(path())
    held: int | None = None
    deadline = time.monotonic() + wait_s
    try:
        while held is None and (held := _taken(name, directory)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        yield held is not None
    finally:
        if held is not None:
            os.unlink(name, dir_fd=directory)
            os.close(held)
        os.close(directory)


def path() -> Path:
    """Where the folder is, or would be on a machine like this one."""
    return Path(tempfile.gettempdir()) / f"twostream-{os.getuid()}"


def _opened(folder: Path) -> int:
    """A descriptor of the folder, which stays that folder whatever is put in its place."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(_refusal(folder, error.strerror or type(error).__name__)) from error
    status = os.fstat(directory)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid() or mode & 0o077:
        os.close(directory)
        raise StorageError(_refusal(folder, f"it belongs to user {status.st_uid} and has mode {mode:04o}"))
    return directory


def _refusal(folder: Path, reason: str) -> str:
    return (
        f"a directory of user {os.getuid()} alone (mode 0700) was wanted at {folder}, got something else ({reason}): "
        "remove it, or let TMPDIR name another directory"
    )


def _taken(name: str, directory: int) -> int | None:
    """A descriptor that holds the lock, or None while somebody else does."""
    try:
        held = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        raise StorageError(_refusal(path(), f"{name}: {error.strerror}")) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed the file that was opened here: then it locks nothing.
        if os.path.samestat(os.fstat(held), os.stat(name, dir_fd=directory, follow_symlinks=False)):
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(held)
        raise
    os.close(held)
    return None
