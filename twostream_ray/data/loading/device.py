"""Host-to-device transfer of batches: staging buffers, and a copy stream one batch ahead of the computation.

There pixels are normalised, as networks take them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.data.loading.decode_device import decode_batch
from twostream_ray.data.loading.staging import StagingBuffers
from twostream_ray.data.snippets import Batch

RGB_MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean in levels 0..255, R G B."""

RGB_STD = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation in levels, R G B."""

FLOW_MEAN = 128.0
"""No motion, in levels (official code: 128 on all channels)."""

FLOW_STD = 57.6
"""Levels that become one unit; near the RGB deviation, so that filters averaged from RGB see inputs of their scale."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBatch:
    """A batch whose arrays are on the device; levels and coded flow as they came, uint8, or combined, float32."""

    rgb: Tensor | None
    flow: Tensor | None
    labels: Tensor
    weights: Tensor
    clips: NDArray[np.int64]
    total: float
    decoded: int = 0
    lanes: NDArray[np.int64] | None = None

    def streams(self) -> tuple[Tensor | None, Tensor | None]:
        """RGB and flow normalised, as a network takes them."""
        return (
            None if self.rgb is None else normalise_rgb(self.rgb),
            None if self.flow is None else normalise_flow(self.flow),
        )

    def parts(self, count: int) -> list[DeviceBatch]:
        """At most so many batches, one after the other, of nearly equal size."""
        return [self.cut(cut) for cut in self.cuts(count)]

    def cuts(self, count: int) -> list[slice]:
        """Where the batch is cut into at most so many parts."""
        ends = np.cumsum([len(part) for part in np.array_split(np.arange(len(self.labels)), count)]).tolist()
        return [slice(start, end) for start, end in pairwise([0, *ends]) if start < end]

    def cut(self, cut: slice) -> DeviceBatch:
        """Some of the samples, in the same memory."""
        return DeviceBatch(
            rgb=None if self.rgb is None else self.rgb[cut],
            flow=None if self.flow is None else self.flow[cut],
            labels=self.labels[cut],
            weights=self.weights[cut],
            clips=self.clips[cut],
            total=self.total,
            lanes=None if self.lanes is None else self.lanes[cut],
        )


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to its device, and decode there what is still encoded; waits for the end of both.

    Raises:
        DecodeError: an encoded field is damaged; names clip, shard and row.
    """
    return _moved(batch, device, copied=lambda _, array: torch.from_numpy(array).to(device))


def _moved(batch: Batch, device: torch.device, *, copied: Callable[[str, NDArray[Any]], Tensor]) -> DeviceBatch:
    """`copied` takes an array's name and the array."""
    arrays = {"rgb": batch.rgb, "flow": batch.flow, "labels": batch.labels, "weights": batch.weights}
    moved = {name: copied(name, array) for name, array in arrays.items() if array is not None}
    flow = moved.get("flow") if batch.encoded_flow is None else decode_batch(batch.encoded_flow, device)
    return DeviceBatch(
        rgb=moved.get("rgb"),
        flow=flow,
        labels=moved["labels"],
        weights=moved["weights"],
        clips=batch.clips,
        total=batch.total,
        decoded=batch.decoded,
        lanes=batch.lanes,
    )


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """The batches on their device; to a GPU each is copied, or decoded there, while the one before it is computed.

    Raises:
        DecodeError: an encoded field is damaged; names clip, shard and row.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    transfer = _transfer(device)

    def next_batch() -> tuple[DeviceBatch, torch.cuda.Event] | None:
        batch = next(batches, None)
        return None if batch is None else transfer.begun(batch)

    for moved, done in one_ahead(next_batch):
        yield transfer.ready(moved, done)


def one_ahead(make: Callable[[], Made | None]) -> Iterator[Made]:
    """What `make` gives until it gives None, each made by a thread while the one before it is used.

    The JPEG decoder makes its caller wait, who would otherwise be queueing the next step.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="to-device") as thread:
        pending = thread.submit(make)
        while (made := pending.result()) is not None:
            pending = thread.submit(make)
            yield made


class _Transfer:
    """A GPU's copy stream and staging buffers: what a process allocates once, for all its passes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._staging = StagingBuffers()

    def begun(self, batch: Batch) -> tuple[DeviceBatch, torch.cuda.Event]:
        """A batch on its way, and what marks its arrival."""
        with torch.cuda.stream(self._stream):
            moved = _moved(
                batch,
                self._device,
                copied=lambda name, array: self._staging.to(self._device, name=name, array=array),
            )
            done = torch.cuda.Event()
            done.record(self._stream)
        return moved, done

    def ready(self, moved: DeviceBatch, done: torch.cuda.Event) -> DeviceBatch:
        """The batch, for the caller's stream, which waits for it."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(done)
        for tensor in (moved.rgb, moved.flow, moved.labels, moved.weights):
            if tensor is not None:
                tensor.record_stream(computing)
        return moved


@cache
def _transfer(device: torch.device) -> _Transfer:
    return _Transfer(device)


def normalise_rgb(rgb: Tensor) -> Tensor:
    """Levels 0..255, (..., 3, H, W) -> float32 of about zero mean and unit deviation."""
    levels = rgb.float()
    return (levels - levels.new_tensor(RGB_MEAN)[:, None, None]) / levels.new_tensor(RGB_STD)[:, None, None]


def normalise_flow(flow: Tensor) -> Tensor:
    """Coded displacements -> float32 of the same shape, 0 where nothing moves."""
    return (flow.float() - FLOW_MEAN) / FLOW_STD
