"""Staging buffers: page-locked memory that batches pass through on their way to a GPU, allocated once and reused.

Page-locking takes about 0.7 s a gigabyte, longer than a step; a copy out of pageable memory makes the host wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BUFFERS_PER_ARRAY = 2
"""One that is filled while the other is copied."""


class CopyEvent(Protocol):
    """What is used of `torch.cuda.Event`."""

    def record(self) -> object:
        """Mark the end of what is queued on the current stream."""

    def synchronize(self) -> object:
        """Wait until what was marked is done."""


def page_locked(size: int) -> Tensor:
    """So many bytes that a GPU reads by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


@dataclass(kw_only=True, slots=True)
class _Buffer:
    memory: Tensor
    copied: CopyEvent


class StagingBuffers:
    """Two buffers for each array of a batch, used in turn by one thread, as large as the largest that came.

    A smaller array, as at the end of a pass, takes a part of its buffer. A buffer is filled again only once the copy
    out of it is done.
    """

    def __init__(
        self,
        *,
        allocate: Callable[[int], Tensor] = page_locked,
        event: Callable[[], CopyEvent] = torch.cuda.Event,
    ) -> None:
        """`allocate` gives uint8 memory of so many bytes; an `event` marks the end of a copy on the current stream."""
        self._allocate, self._event = allocate, event
        self._buffers: dict[str, list[_Buffer]] = {}
        self.allocations = 0
        """Buffers that were allocated so far, the ones that were too small among them."""

    def to(self, device: torch.device, *, name: str, array: NDArray[Any]) -> Tensor:
        """Begin to copy the array of a batch that has this name to a device, on the current stream."""
        buffer = self._next(name, max(array.nbytes, 1))
        source = torch.from_numpy(np.ascontiguousarray(array))
        staged = buffer.memory[: array.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        copy = torch.empty_like(staged, device=device)
        copy.copy_(staged, non_blocking=True)
        buffer.copied.record()
        return copy

    def _next(self, name: str, size: int) -> _Buffer:
        buffers = self._buffers.setdefault(name, [])
        if len(buffers) < _BUFFERS_PER_ARRAY:
            buffers.append(self._new(size))
            return buffers[-1]
        buffer = buffers.pop(0)
        buffer.copied.synchronize()
        if buffer.memory.nbytes < size:
            buffer = self._new(size)
        buffers.append(buffer)
        return buffer

    def _new(self, size: int) -> _Buffer:
        self.allocations += 1
        return _Buffer(memory=self._allocate(size), copied=self._event())
