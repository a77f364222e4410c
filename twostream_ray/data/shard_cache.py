"""Whole shards of an object store kept on this machine's disk, each fetched once for all its processes."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from twostream_ray import storage
from twostream_ray.data.locks import locked
from twostream_ray.errors import ShardError

_IDLE_S = 3600.0
"""Entries read within this time stay: a pass over more shards than fit would otherwise throw out what it needs next."""


class ShardCache:
    """A directory of shards named by their sha256, within a limit, for any number of processes and shard sets.

    Where the limit is reached, entries that nobody has read for an hour make room, the longest unread first; if there
    are none, further shards are read from the store as without a cache.
    """

    def __init__(self, directory: str, *, limit_bytes: int) -> None:
        self._directory, self._limit = Path(directory).expanduser().absolute(), limit_bytes

    def fetch(self, uri: str, *, sha256: str, size: int) -> Path | None:
        """The shard on this machine, fetched if need be; None if there is no room for it.

        Raises:
            ShardError: what the store gave does not have this sha256.
            StorageError: the store cannot be read.
        """
        entry = self._directory / sha256
        if _touched(entry):
            return entry
        self._directory.mkdir(parents=True, exist_ok=True)
        # Whoever comes second waits for the first; the lock of one that dies is free.
        with locked(self._directory / f"{sha256}.lock"):
            if _touched(entry):
                return entry
            partial = self._directory / f"{sha256}.partial"
            if not self._reserve(partial, size):
                return None
            try:
                storage.copy_to_disk(uri, partial)
                with partial.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    raise ShardError(
                        f"{uri} with sha256 {sha256[:12]} was wanted, as its manifest says; it has {found[:12]}: it is "
                        "damaged, delete it and ingest again"
                    )
                partial.replace(entry)
            finally:
                partial.unlink(missing_ok=True)
        return entry

    def drop(self, entry: Path) -> None:
        """Forget an entry that turned out to be damaged."""
        entry.unlink(missing_ok=True)

    def _reserve(self, partial: Path, size: int) -> bool:
        """Make room, and take it by a file of the size that is to come."""
        with locked(self._directory / "lock"):
            entries = {}
            for path in self._directory.iterdir():
                if path.suffix == ".partial" and _left_behind(path):
                    path.unlink(missing_ok=True)
                elif path.suffix != ".lock":
                    with suppress(FileNotFoundError):
                        entries[path] = path.stat()
            taken = sum(status.st_size for path, status in entries.items() if path != partial)
            oldest_first = sorted(entries, key=lambda path: entries[path].st_mtime)
            for path in oldest_first:
                if taken + size <= self._limit:
                    break
                if not path.suffix and entries[path].st_mtime < time.time() - _IDLE_S:
                    # Who reads it at this moment keeps it until the file is closed.
                    path.unlink(missing_ok=True)
                    taken -= entries[path].st_size
            if taken + size > self._limit:
                return False
            with partial.open("wb") as file:
                file.truncate(size)
            return True


def _touched(entry: Path) -> bool:
    """Whether the entry is there; if so it counts as read now."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    return True


def _left_behind(partial: Path) -> bool:
    """Whether the process that was fetching it is gone."""
    try:
        with locked(partial.with_suffix(".lock"), wait=False):
            return True
    except BlockingIOError:
        return False
