"""Buffer pool for batches: memory is reused once nothing refers to it; fresh pages cost over 1 ms per sample."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.loading.shared_memory import SharedMemory


class Buffers:
    """Hands out arrays backed by a few reused blocks of memory; to be called by one thread.

    A block returns to the pool when the last array, view, tensor or Arrow buffer on it is garbage-collected. While a
    batch is referenced its memory is not reused, and another block is allocated. A pickled pool is empty.
    """

    def __init__(self, memory: SharedMemory | None = None) -> None:
        """Allocate from `memory` if other processes are to fill the arrays."""
        self._memory = memory
        self._free: deque[NDArray[np.uint8]] = deque()

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An uninitialised uint8 array of this shape."""
        size = math.prod(shape)
        if not size:
            return np.empty(shape, np.uint8)
        piece = None
        while self._free and piece is None:
            piece = self._free.pop()
            if not size <= piece.nbytes <= 2 * size:
                # Left from a pass with other sizes: keeping blocks of all sizes would leak memory.
                if self._memory is not None:
                    self._memory.free(piece)
                piece = None
        if piece is None:
            piece = np.empty(size, np.uint8) if self._memory is None else self._memory.allocate(size)
        # NumPy views keep the owner of the memory alive, not the array that they were sliced from: hence this owner.
        lease: Any = (ctypes.c_uint8 * size).from_buffer(piece)  # type: ignore[arg-type]  # NumPy says so from 3.12 on
        weakref.finalize(lease, self._free.append, piece).atexit = False
        return np.frombuffer(lease, np.uint8).reshape(shape)

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()


class SampleBuffers:
    """Buffer pools for the decoded streams of samples; a pickled one is empty."""

    def __init__(
        self, config: DataConfig, *, want_rgb: bool, want_flow: bool, memory: SharedMemory | None = None
    ) -> None:
        self._snippet_shape = (config.sampling.num_snippets, config.transforms.crop_px)
        self._channels = (3 if want_rgb else 0, 2 * config.sampling.flow_length if want_flow else 0)
        self._pools = (Buffers(memory), Buffers(memory))

    def streams(self, samples: int) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """Uninitialised RGB (samples, T, 3, H, W) and flow (samples, T, 2L, H, W) uint8; None if not requested."""
        num_snippets, size = self._snippet_shape
        rgb, flow = (
            pool.allocate((samples, num_snippets, channels, size, size)) if channels else None
            for pool, channels in zip(self._pools, self._channels, strict=True)
        )
        return rgb, flow
