"""Memory of batches, used again once nobody holds it: fresh pages cost more than a millisecond a sample."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Buffers:
    """Arrays out of a few pieces of memory; one thread asks for them.

    A piece comes back when the last array, view, tensor or Arrow buffer on it is gone: whoever keeps a batch keeps its
    memory, and another piece is made. Pickling leaves the pieces behind.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def room(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of this shape, filled with whatever was there before."""
        size = math.prod(shape)
        if not size:
            return np.empty(shape, np.uint8)
        piece = None
        while self._free and piece is None:
            piece = self._free.pop()
            if not size <= piece.nbytes <= 2 * size:
                piece = None  # another kind of pass has begun: keeping its pieces too would be a leak
        if piece is None:
            piece = np.empty(size, np.uint8)
        # Views hold on to whatever owns the memory, not to the array they were cut from: hence this owner.
        lease: Any = (ctypes.c_uint8 * size).from_buffer(piece)  # type: ignore[arg-type]  # NumPy says so from 3.12 on
        weakref.finalize(lease, self._free.append, piece).atexit = False
        return np.frombuffer(lease, np.uint8).reshape(shape)

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()
