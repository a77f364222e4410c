"""Temporary folders whose names say whose they are, so that those of killed processes are found and removed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from twostream_ray.processes import is_gone, started_at, this_machine
from twostream_ray.storage.user_folder import own_folder

_NAME = re.compile(
    r"(?P<host>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<namespace>[0-9a-f]{8})-(?P<process>[1-9]\d{0,9})-"
    r"(?P<start>\d{1,20})-\w+"
)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process that goes with the block or object; if the process is killed, with the next sweep.

    Raises:
        StorageError: the user's own temporary folder cannot be had.
        OSError: there is no room in it.
    """
    host, boot, namespace = _marks()
    process = os.getpid()
    prefix = f"{host}-{boot}-{namespace}-{process}-{started_at(process) or 0}-"
    return tempfile.TemporaryDirectory(prefix=prefix, dir=own_folder())


def sweep() -> int:
    """Remove the folders of this user's processes that are gone from this machine; gives how many there were.

    What another host or container has in the same place stays, and so does whatever is called otherwise.

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
