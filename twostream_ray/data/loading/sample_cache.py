"""Disk cache of decoded samples: each is decoded once on a machine for all runs that draw the same ones."""

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
    """A directory of decoded samples within a limit, for any number of threads and processes.

    A sample is named by all that it depends on, so trainings that differ in their networks alone share it. When two
    want one at the same moment, the second waits for the first. When the limit is reached or the disk too full, a
    warning says so and further samples are decoded every time: what came first stays, for the first epochs are those
    that every trial of a search trains on.
    """

    def __init__(self, directory: str, *, limit_bytes: int, depends_on: Mapping[str, Any]) -> None:
        """`depends_on`: all that makes samples of a clip differ except their `names`, in JSON's types.

        Raises:
            StorageError: the directory cannot be made, or holds something else.
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
                f"data.sample_cache wants a directory that can be written, got {directory} ({error.strerror}): name "
                "another, or leave it out"
            ) from error

    def fill(self, drawn: str, clip: str, streams: Mapping[str, tuple[NDArray[np.uint8], Decode]]) -> bool:
        """Have a clip's samples of a pass in arrays, stream -> (contiguous (views, T, C, H, W), what decodes into it).

        Returns whether something had to be decoded.
        """

        def missing() -> list[str]:
            return [stream for stream, (out, _) in streams.items() if not _read(self._entry(drawn, stream, clip), out)]

        if not missing():
            return False
        # Few files for many samples: another one of the same lock waits for milliseconds.
        with locked(self._locks / str(zlib.crc32(f"{drawn}/{clip}".encode()) % _LOCKS)):
            wanted = missing()
            for stream in wanted:
                out, decode = streams[stream]
                decode(out)
                if not self._full:
                    self._keep(self._entry(drawn, stream, clip), out)
        return bool(wanted)

    def _entry(self, drawn: str, stream: str, clip: str) -> Path:
        return self._samples / f"{drawn}-{stream}" / clip

    def _keep(self, entry: Path, out: NDArray[np.uint8]) -> None:
        partial = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}")
        try:
            reason = self._reserve(out.nbytes)
            if reason:
                self._stop_keeping(reason)
                return
            entry.parent.mkdir(exist_ok=True)
            with new_file(partial) as file:
                file.write(out.data)
                file.write(_checksum(out))
            partial.replace(entry)
        except OSError as error:
            # It only saves time: whatever is wrong with the disk, training continues.
            self._stop_keeping(f"it cannot be written ({error.strerror})")
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _stop_keeping(self, reason: str) -> None:
        self._full = True
        warn_once(f"data.sample_cache {self._root} takes no more samples, the others are decoded every time: {reason}")

    def _reserve(self, size: int) -> str | None:
        """Count a sample in, or say why there is no room for it."""
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
    """Read a kept sample into `out`; False if it is not there, not of this length, or has another checksum."""
    try:
        with opened(entry) as file:
            whole = file.readinto(out.data.cast("B")) == out.nbytes
            return whole and file.read(_CHECKSUM_BYTES + 1) == _checksum(out)
    except OSError:
        return False


def _checksum(out: NDArray[np.uint8]) -> bytes:
    """The checksum at the end of a sample's file; 1 ms a megabyte."""
    return zlib.crc32(out.data).to_bytes(_CHECKSUM_BYTES, "big")
