"""Temporary directories in a private per-user directory, named after their process; dead processes' are removed.

The per-user directory is in the shared temporary directory: mode 0700, owner checked, symbolic links not followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from twostream_ray.errors import StorageError
from twostream_ray.processes import is_gone, started_at, this_machine

_NAME = re.compile(
    r"(?P<host>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<namespace>[0-9a-f]{8})-(?P<process>[1-9]\d{0,9})-"
    r"(?P<start>\d{1,20})-\w+"
)


def own_folder_path() -> Path:
    """Path of the per-user directory, whether it exists or not."""
    return Path(tempfile.gettempdir()) / f"twostream-{os.getuid()}"


def own_folder(folder: Path | None = None) -> Path:
    """The per-user directory, created if necessary; by default this process's, or one at another path.

    Other users may write next to it, but not into it.

    Raises:
        StorageError: it is a link, belongs to another user, is accessible to others, or cannot be created.
    """
    folder = folder or own_folder_path()
    os.close(open_own_folder(folder))
    return folder


def open_own_folder(folder: Path | None = None) -> int:
    """A descriptor of the per-user directory, which is safe against replacement of the path.

    Raises:
        StorageError: as own_folder.
    """
    folder = folder or own_folder_path()
    try:
        with suppress(FileExistsError):
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
        f"{folder} must be a directory of user {os.getuid()} with mode 0700, it is not usable ({reason}): "
        "remove it, or let TMPDIR name another directory"
    )


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary directory, removed with the block or object, or by the next sweep if the process is killed.

    Raises:
        StorageError: the user's own temporary folder cannot be had.
        OSError: there is no room in it.
    """
    host, boot, namespace = _marks()
    process = os.getpid()
    prefix = f"{host}-{boot}-{namespace}-{process}-{started_at(process) or 0}-"
    return tempfile.TemporaryDirectory(prefix=prefix, dir=own_folder())


def sweep() -> int:
    """Remove the temporary directories of this user's dead processes on this machine; returns their number.

    What another host or container has in the same directory stays, and so does anything of another name.

    Raises:
        StorageError: the user's own temporary folder cannot be had.
    """
    host, boot, namespace = _marks()
    swept = 0
    for path in own_folder().iterdir():
        found = _NAME.fullmatch(path.name)
        if found is None or found["host"] != host:
            continue
        ended = found["boot"] != boot or (
            found["namespace"] == namespace and is_gone(int(found["process"]), start=int(found["start"]))
        )
        if ended and is_own_folder(path):
            # It follows no links; what cannot be removed is met again.
            shutil.rmtree(path, ignore_errors=True)
            swept += 1
    return swept


def _marks() -> tuple[str, str, str]:
    machine = this_machine()
    parts = (machine.host, machine.boot, machine.namespace)
    host, boot, namespace = (hashlib.sha256(part.encode()).hexdigest()[:8] for part in parts)
    return host, boot, namespace


def is_own_folder(path: Path) -> bool:
    """Whether it is a folder, and no link to one, that this user has made."""
    with suppress(OSError):
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return False
