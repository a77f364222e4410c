"""Local disk cache of shards from an object store: LRU eviction, shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from twostream_ray import storage
from twostream_ray.errors import ShardError, StorageError, is_disk_full
from twostream_ray.storage.cache_folder import claim, new_file, reason_to_add_nothing, warn_once
from twostream_ray.storage.locks import locked

_ENTRY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"[0-9a-f]{64}\.partial")
_LOCK = re.compile(r"[0-9a-f]{64}\.lock")

_IDLE_S = 3600.0
"""Entries read within this time are not evicted: a pass over more shards than fit would evict what it needs next."""


class ShardCache:
    """A size-limited directory of shards named by their SHA-256, for any number of processes and shard sets.

    Where the limit is reached or the disk too full, entries unread for an hour make room, the longest unread first; if
    there are none, further shards are read from the store as without a cache, and a warning says so.
    """

    def __init__(self, directory: str, *, limit_bytes: int) -> None:
        self._directory, self._limit = Path(directory).expanduser().absolute(), limit_bytes

    def fetch(self, uri: str, *, sha256: str, size: int) -> Path | None:
        """Path of the shard on the local disk, downloaded if necessary; None if there is no room for it.

        Raises:
            ShardError: the download does not have this SHA-256, or `sha256` is malformed.
            StorageError: the store cannot be read, the directory cannot be written, or is not a cache.
        """
        if not _ENTRY.fullmatch(sha256):
            raise ShardError(
                f"expected the sha256 of {uri} as 64 hexadecimal digits, got {sha256[:100]!r}: ingest again"
            )
        entry = self._directory / sha256
        if _touched(entry):
            return entry
        claim(self._directory, setting="data.cache")
        # A second process waits for the first; a lock is released when its process dies.
        with locked(self._directory / f"{sha256}.lock"):
            if _touched(entry):
                return entry
            partial = self._directory / f"{sha256}.partial"
            try:
                reason = self._reserve(partial, size)
                if reason is None:
                    _copy(uri, partial, sha256=sha256)
                    partial.replace(entry)
                    return entry
            except (OSError, StorageError) as error:
                # The cache only saves time: with a full disk the shard is read from the store.
                if not is_disk_full(error):
                    raise
                reason = "its disk is full"
            finally:
                partial.unlink(missing_ok=True)
        warn_once(f"data.cache {self._directory} takes no more shards, others are read from the store: {reason}")
        return None

    def drop(self, entry: Path) -> None:
        """Delete a damaged entry."""
        entry.unlink(missing_ok=True)

    def _reserve(self, partial: Path, size: int) -> str | None:
        """Evict entries and preallocate the partial file; returns why there is no room, or None."""
        with locked(self._directory / "lock"):
            entries = {}
            taken = 0
            for path in self._directory.iterdir():
                if path == partial or (_PARTIAL.fullmatch(path.name) and _left_behind(path)):
                    path.unlink(missing_ok=True)
                elif _LOCK.fullmatch(path.name):
                    _left_behind(path)
                elif _PARTIAL.fullmatch(path.name) or _ENTRY.fullmatch(path.name):
                    status = _status(path)
                    taken += status.st_size if status else 0
                    if status and not path.suffix:
                        entries[path] = status
            oldest_first = sorted(entries, key=lambda path: entries[path].st_mtime)
            for path in oldest_first:
                if taken + size <= self._limit and reason_to_add_nothing(self._directory, size) is None:
                    break
                if entries[path].st_mtime < time.time() - _IDLE_S:
                    # A process that has it open can read on until it closes the file.
                    path.unlink(missing_ok=True)
                    taken -= entries[path].st_size
            if taken + size > self._limit:
                return f"data.cache_gb={self._limit / 1e9:g} are full"
            reason = reason_to_add_nothing(self._directory, size)
            if reason is None:
                with new_file(partial) as file:
                    file.truncate(size)
            return reason


def _copy(uri: str, path: Path, *, sha256: str) -> None:
    storage.copy_to_disk(uri, path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ShardError(
            f"{uri} should have sha256 {sha256[:12]} by its manifest, got {found[:12]}: it is damaged, "
            "delete it and ingest again"
        )


def _touched(entry: Path) -> bool:
    """Whether the entry exists as a regular file; if so, update its access time."""
    if _status(entry) is None:
        return False
    with suppress(FileNotFoundError):
        os.utime(entry, follow_symlinks=False)
        return True
    return False


def _status(path: Path) -> os.stat_result | None:
    """Size and times of a regular file, or None."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        return status if stat.S_ISREG(status.st_mode) else None
    return None


def _left_behind(path: Path) -> bool:
    """Whether the process that was downloading it has died; if so, its lock file is removed."""
    try:
        with locked(path.with_suffix(".lock"), wait=False):
            return True
    except (BlockingIOError, StorageError):
        return False
