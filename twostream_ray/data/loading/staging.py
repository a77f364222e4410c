"""Pinned staging buffers for host-to-device copies, allocated once and reused.

Pinning memory takes about 0.7 s per gigabyte, longer than a step; copies from pageable memory block the host.
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
"""Double buffering: one is filled while the other is copied."""


class CopyEvent(Protocol):
    """The part of `torch.cuda.Event` that is used here."""

    def record(self) -> object:
        """Record the event on the current stream."""

    def synchronize(self) -> object:
        """Wait until all work before the event is done."""


def page_locked(size: int) -> Tensor:
    """Pinned host memory, (size,) uint8."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


@dataclass(kw_only=True, slots=True)
class _Buffer:
    memory: Tensor
    copied: CopyEvent


class StagingBuffers:
    """Two alternating buffers per array of a batch, for one thread; they grow to the largest array seen.

    A smaller array, as at the end of a pass, uses a part of its buffer. A buffer is refilled only after the copy from
    it has finished.
    """

    def __init__(
        self,
        *,
        allocate: Callable[[int], Tensor] = page_locked,
        event: Callable[[], CopyEvent] = torch.cuda.Event,
    ) -> None:
        """`allocate` returns (size,) uint8 memory; `event` creates the event that marks the end of a copy."""
        self._allocate, self._event = allocate, event
        self._buffers: dict[str, list[_Buffer]] = {}
        self.allocations = 0
        """Buffers allocated so far, including outgrown ones."""

    def to(self, device: torch.device, *, name: str, array: NDArray[Any]) -> Tensor:
        """Start an asynchronous copy of an array to a device, on the current stream.

        Args:
            device: a CUDA device.
            name: of the array in its batch; each name has its own buffers.
            array: of any shape and dtype.
        """
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
