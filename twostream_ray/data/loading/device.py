"""Host-to-device transfer of batches: pinned staging buffers, and a CUDA copy stream that prefetches one batch.

Pixels are normalised on the device.
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
"""Zero motion in levels (official code: 128 on all channels)."""

FLOW_STD = 57.6
"""Levels per unit of normalised flow; close to the RGB deviation, so that filters averaged from RGB get inputs of the
scale that they were trained on."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBatch:
    """A `Batch` on the device; the streams are uint8 as read, or float32 levels after mixup."""

    rgb: Tensor | None
    """(N, T, 3, H, W), levels 0..255."""
    flow: Tensor | None
    """(N, T, 2L, H, W), quantised displacements."""
    labels: Tensor
    """(N,) int64, class indices."""
    weights: Tensor
    """(N,) float32, 1 for a sample, 0 for padding."""
    clips: NDArray[np.int64]
    """(N,), index of each sample's clip in the shard set's index."""
    total: float
    """Sum of weights over all workers in this step."""
    decoded: int = 0
    """Clips decoded for this batch."""
    lanes: NDArray[np.int64] | None = None
    """(N,), lane of each sample."""

    def streams(self) -> tuple[Tensor | None, Tensor | None]:
        """Normalised network inputs, float32: RGB (N, T, 3, H, W) and flow (N, T, 2L, H, W)."""
        return (
            None if self.rgb is None else normalise_rgb(self.rgb),
            None if self.flow is None else normalise_flow(self.flow),
        )

    def parts(self, count: int) -> list[DeviceBatch]:
        """Split the batch into at most `count` micro-batches of nearly equal size."""
        return [self.cut(cut) for cut in self.cuts(count)]

    def cuts(self, count: int) -> list[slice]:
        """Slices of the samples for at most `count` micro-batches of nearly equal size."""
        ends = np.cumsum([len(part) for part in np.array_split(np.arange(len(self.labels)), count)]).tolist()
        return [slice(start, end) for start, end in pairwise([0, *ends]) if start < end]

    def cut(self, cut: slice) -> DeviceBatch:
        """A slice of the samples, sharing memory."""
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
    """Copy a batch to the device and decode there what is still encoded; synchronous.

    Raises:
        DecodeError: an encoded field is damaged; names clip, shard and row.
    """
    return _moved(batch, device, copied=lambda _, array: torch.from_numpy(array).to(device))


def _moved(batch: Batch, device: torch.device, *, copied: Callable[[str, NDArray[Any]], Tensor]) -> DeviceBatch:
    """Move a batch by `copied`, a function of an array's name and the array."""
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
    """Iterate over batches on their device; for a GPU, copying and decoding overlap with the previous batch's step.

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
        return None if batch is None else transfer.start(batch)

    for moved, done in prefetch_one(next_batch):
        yield transfer.wait(moved, done)


def prefetch_one(make: Callable[[], Made | None]) -> Iterator[Made]:
    """Iterate over the results of `make` until it returns None, calling it in a thread one result ahead.

    In a thread, because the JPEG decoder blocks its caller, which should be queueing the next step meanwhile.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="to-device") as thread:
        pending = thread.submit(make)
        while (made := pending.result()) is not None:
            pending = thread.submit(make)
            yield made


class _Transfer:
    """A GPU's copy stream and staging buffers, allocated once per process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._staging = StagingBuffers()

    def start(self, batch: Batch) -> tuple[DeviceBatch, torch.cuda.Event]:
        """Start copying a batch; returns it and the event of its arrival."""
        with torch.cuda.stream(self._stream):
            moved = _moved(
                batch,
                self._device,
                copied=lambda name, array: self._staging.to(self._device, name=name, array=array),
            )
            done = torch.cuda.Event()
            done.record(self._stream)
        return moved, done

    def wait(self, moved: DeviceBatch, done: torch.cuda.Event) -> DeviceBatch:
        """Make the current stream wait for the batch, and return it."""
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
    """Levels 0..255, (..., 3, H, W) -> float32 of the same shape with about zero mean and unit deviation."""
    levels = rgb.float()
    return (levels - levels.new_tensor(RGB_MEAN)[:, None, None]) / levels.new_tensor(RGB_STD)[:, None, None]


def normalise_flow(flow: Tensor) -> Tensor:
    """Quantised displacements, any shape -> float32 of the same shape, 0 for no motion."""
    return (flow.float() - FLOW_MEAN) / FLOW_STD
