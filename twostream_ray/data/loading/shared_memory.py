"""Shared memory of a worker and its decoder processes: mapped blocks of one anonymous file (memfd).

The kernel frees the file with its last descriptor, so nothing is left behind if processes crash, and the size of
/dev/shm, 64 MB in many containers, does not matter.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 1 << 21
"""Bytes; a multiple of every system's page size, and the size of x86's huge pages."""
_KEPT_MAPPINGS = 64


@dataclass(frozen=True, slots=True)
class Region:
    """Location of a uint8 array in shared memory, valid in any process."""

    piece: int
    """Offset of the block in the file."""
    piece_bytes: int
    """Size of the block."""
    start: int
    """Offset of the array in the block."""
    shape: tuple[int, ...]
    """Shape of the array."""


class SharedMemory:
    """Allocator of shared memory, thread-safe; child processes map it by its descriptor `fd`."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("twostream-samples")
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fd)
        self._lock = threading.Lock()
        self._end = 0
        self._pieces: dict[int, tuple[mmap.mmap, int, int]] = {}

    def allocate(self, size: int) -> NDArray[np.uint8]:
        """A zeroed block, (size,) uint8."""
        with self._lock:
            offset, self._end = self._end, self._end + -(-size // _ALIGNMENT) * _ALIGNMENT
            os.ftruncate(self.fd, self._end)
        mapping = mmap.mmap(self.fd, size, offset=offset)
        piece = np.frombuffer(mapping, np.uint8)
        with self._lock:
            self._pieces[_address(piece)] = (mapping, offset, size)
        return piece

    def free(self, piece: NDArray[np.uint8]) -> None:
        """Return a block's pages to the system; it must not be used afterwards."""
        with self._lock:
            mapping, _, _ = self._pieces.pop(_address(piece))
        if hasattr(mmap, "MADV_REMOVE"):
            mapping.madvise(mmap.MADV_REMOVE)

    def locate(self, array: NDArray[np.uint8]) -> Region:
        """Location of a contiguous array that was allocated here.

        Raises:
            ValueError: the array is not contiguous, or not in this memory.
        """
        address = _address(array)
        if not array.flags.c_contiguous:
            raise ValueError("expected a contiguous array")
        with self._lock:
            for start, (_, offset, size) in self._pieces.items():
                if start <= address and address + array.nbytes <= start + size:
                    return Region(piece=offset, piece_bytes=size, start=address - start, shape=array.shape)
        raise ValueError("expected an array in shared memory")


class SharedMemoryView:
    """Access to the shared memory from a child process, by an inherited descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mappings: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def array(self, region: Region) -> NDArray[np.uint8]:
        """The uint8 array at a location."""
        key = (region.piece, region.piece_bytes)
        piece = self._mappings.get(key)
        if piece is None:
            if len(self._mappings) >= _KEPT_MAPPINGS:
                self._mappings.pop(next(iter(self._mappings)))
            piece = np.frombuffer(mmap.mmap(self._fd, region.piece_bytes, offset=region.piece), np.uint8)
            self._mappings[key] = piece
        size = int(np.prod(region.shape, dtype=np.int64))
        return piece[region.start : region.start + size].reshape(region.shape)


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
