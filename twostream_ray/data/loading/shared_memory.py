"""Shared memory: pieces of one anonymous file that this process and its decoder processes map.

An open descriptor is all that keeps the file: nothing is left behind, however the processes end, and /dev/shm's size,
64 MB in many containers, does not matter.
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
"""Bytes; a multiple of every system's granularity of mapping, and the size of x86's large pages."""
_KEPT_MAPPINGS = 64


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of a piece of shared memory, as another process finds them."""

    piece: int
    """Where in the file the piece begins."""
    piece_bytes: int
    """Its length."""
    start: int
    """Where in the piece the region begins."""
    shape: tuple[int, ...]
    """Of the array of uint8 that it holds."""


class SharedMemory:
    """Memory that grows by pieces; any thread may ask for them. A child gets its descriptor, `fd`."""

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
        """A piece of so many bytes, zeros."""
        with self._lock:
            offset, self._end = self._end, self._end + -(-size // _ALIGNMENT) * _ALIGNMENT
            os.ftruncate(self.fd, self._end)
        mapping = mmap.mmap(self.fd, size, offset=offset)
        piece = np.frombuffer(mapping, np.uint8)
        with self._lock:
            self._pieces[_address(piece)] = (mapping, offset, size)
        return piece

    def free(self, piece: NDArray[np.uint8]) -> None:
        """Give a piece's pages back to the system; nobody may use it any more."""
        with self._lock:
            mapping, _, _ = self._pieces.pop(_address(piece))
        if hasattr(mmap, "MADV_REMOVE"):
            mapping.madvise(mmap.MADV_REMOVE)

    def locate(self, array: NDArray[np.uint8]) -> Region:
        """Where a contiguous array that is in a piece is.

        Raises:
            ValueError: it is in none.
        """
        address = _address(array)
        if not array.flags.c_contiguous:
            raise ValueError("a contiguous array was wanted")
        with self._lock:
            for start, (_, offset, size) in self._pieces.items():
                if start <= address and address + array.nbytes <= start + size:
                    return Region(piece=offset, piece_bytes=size, start=address - start, shape=array.shape)
        raise ValueError("an array in shared memory was wanted")


class SharedMemoryView:
    """The same memory in a child, by the descriptor that it was given."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mappings: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def array(self, region: Region) -> NDArray[np.uint8]:
        """The array in a region."""
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
