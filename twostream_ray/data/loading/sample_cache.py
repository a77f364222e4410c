"""Disk cache of decoded samples, shared by all runs on a machine that draw the same samples."""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostream_ray.errors import StorageError
from twostream_ray.storage.cache_folder import claim, new_file, opened, reason_to_add_nothing, warn_once
from twostream_ray.storage.locks import locked

Decode = Callable[[NDArray[np.uint8]], object]

_LOCKS = 256
_CHECKSUM_BYTES = 4


class SampleCache:
    """A size-limited directory of decoded samples; safe for concurrent threads and processes.

    The key of a sample covers everything that it depends on, so runs that differ only in their networks share it. If
    two processes miss the same sample at once, the second waits for the first. There is no eviction: once the limit is
    reached or the disk too full, a warning is logged and further samples are decoded every time. The oldest samples are
    the most useful, as every trial of a search trains on the first epochs.
    """

    def __init__(self, directory: str, *, limit_bytes: int, depends_on: Mapping[str, Any]) -> None:
        """Open or create the cache.

        Args:
            directory: of the cache; may be shared by caches of other settings.
            limit_bytes: size of the directory at most.
            depends_on: everything besides pass, clip and stream that determines samples, as JSON values.

        Raises:
            StorageError: the directory cannot be created, or is not a cache.
        """
        identity = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
        self._root, self._limit = Path(directory).expanduser().absolute(), limit_bytes
        self._samples, self._locks = self._root / identity, self._root / "locks"
        self._full = False
        claim(self._root, setting="data.sample_cache")
        try:
            for made in (self._samples, self._locks):
                made.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"data.sample_cache must be a writable directory, got {directory} ({error.strerror}): set another, or "
                "leave it out"
            ) from error

    def fill(self, pass_name: str, clip: str, streams: Mapping[str, tuple[NDArray[np.uint8], Decode]]) -> bool:
        """Read a clip's samples from the cache, or decode and store them.

        Args:
            pass_name: identifies the random draws of the pass.
            clip: identifies the clip.
            streams: stream -> (contiguous output (views, T, C, H, W) uint8, function that decodes into it).

        Returns:
            Whether anything was decoded.
        """

        def missing() -> list[str]:
            return [
                stream for stream, (out, _) in streams.items() if not _read(self._entry(pass_name, stream, clip), out)
            ]

        if not missing():
            return False
        # Lock striping: samples that share a lock file wait for each other only for milliseconds.
        with locked(self._locks / str(zlib.crc32(f"{pass_name}/{clip}".encode()) % _LOCKS)):
            wanted = missing()
            for stream in wanted:
                out, decode = streams[stream]
                decode(out)
                if not self._full:
                    self._store(self._entry(pass_name, stream, clip), out)
        return bool(wanted)

    def _entry(self, pass_name: str, stream: str, clip: str) -> Path:
        return self._samples / f"{pass_name}-{stream}" / clip

    def _store(self, entry: Path, out: NDArray[np.uint8]) -> None:
        partial = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}")
        try:
            reason = self._reserve(out.nbytes)
            if reason:
                self._stop_storing(reason)
                return
            entry.parent.mkdir(exist_ok=True)
            with new_file(partial) as file:
                file.write(out.data)
                file.write(_checksum(out))
            partial.replace(entry)
        except OSError as error:
            # The cache only saves time: training continues whatever is wrong with the disk.
            self._stop_storing(f"it cannot be written ({error.strerror})")
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _stop_storing(self, reason: str) -> None:
        self._full = True
        warn_once(f"data.sample_cache {self._root} takes no more samples, the others are decoded every time: {reason}")

    def _reserve(self, size: int) -> str | None:
        """Reserve space for a sample, or return why there is none."""
        reason = reason_to_add_nothing(self._root, size)
        if reason:
            return reason
        with locked(self._root / "size", keep=True) as counter:
            taken = int(counter.read() or 0) + size
            if taken > self._limit:
                return f"data.sample_cache_gb={self._limit / 1e9:g} are full"
            counter.seek(0)
            counter.write(str(taken).encode())
            counter.truncate()
            return None


def _read(entry: Path, out: NDArray[np.uint8]) -> bool:
    """Read a cached sample into `out`; False if it is missing, has another length or another checksum."""
    try:
        with opened(entry) as file:
            is_complete = file.readinto(out.data.cast("B")) == out.nbytes
            return is_complete and file.read(_CHECKSUM_BYTES + 1) == _checksum(out)
    except OSError:
        return False


def _checksum(out: NDArray[np.uint8]) -> bytes:
    """CRC-32 at the end of a sample's file; takes 1 ms per megabyte."""
    return zlib.crc32(out.data).to_bytes(_CHECKSUM_BYTES, "big")
