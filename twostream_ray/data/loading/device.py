"""Host-to-device transfer of batches: pinned memory, and a copy stream one batch ahead of the computation.

There pixels are normalised, as networks take them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.data.snippets import Batch

RGB_MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean in levels 0..255, R G B."""

RGB_STD = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation in levels, R G B."""

FLOW_MEAN = 128.0
"""No motion, in levels (official code: 128 on all channels)."""

FLOW_STD = 57.6
"""Levels that become one unit; near the RGB deviation, so that filters averaged from RGB see inputs of their scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBatch:
    """A batch whose arrays are on the device; levels and coded flow as they came, uint8."""

    rgb: Tensor | None
    flow: Tensor | None
    labels: Tensor
    weights: Tensor
    clips: NDArray[np.int64]
    total: float

    def streams(self) -> tuple[Tensor | None, Tensor | None]:
        """RGB and flow normalised, as a network takes them."""
        return (
            None if self.rgb is None else normalise_rgb(self.rgb),
            None if self.flow is None else normalise_flow(self.flow),
        )

    def parts(self, count: int) -> list[DeviceBatch]:
        """At most so many batches, one after the other, of nearly equal size."""
        cuts = [part for part in torch.arange(len(self.labels)).tensor_split(count) if len(part)]
        return [
            DeviceBatch(
                rgb=None if self.rgb is None else self.rgb[part[0] : part[-1] + 1],
                flow=None if self.flow is None else self.flow[part[0] : part[-1] + 1],
                labels=self.labels[part[0] : part[-1] + 1],
                weights=self.weights[part[0] : part[-1] + 1],
                clips=self.clips[part[0] : part[-1] + 1],
                total=self.total,
            )
            for part in cuts
        ]


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to its device; to a GPU from pinned memory, without waiting for the copy's end."""

    def copied(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    return DeviceBatch(
        rgb=None if batch.rgb is None else copied(batch.rgb),
        flow=None if batch.flow is None else copied(batch.flow),
        labels=copied(batch.labels),
        weights=copied(batch.weights),
        clips=batch.clips,
        total=batch.total,
    )


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """The batches on their device; on a GPU each is copied while the one before it is computed."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    copying = torch.cuda.Stream(device)

    def ready(copied: DeviceBatch) -> DeviceBatch:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for tensor in (copied.rgb, copied.flow, copied.labels, copied.weights):
            if tensor is not None:
                tensor.record_stream(computing)
        return copied

    ahead: DeviceBatch | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copied = to_device(batch, device)
        if ahead is not None:
            yield ready(ahead)
        ahead = copied
    if ahead is not None:
        yield ready(ahead)


def normalise_rgb(rgb: Tensor) -> Tensor:
    """Levels 0..255, uint8 (..., 3, H, W) -> float32 of about zero mean and unit deviation."""
    levels = rgb.float()
    return (levels - levels.new_tensor(RGB_MEAN)[:, None, None]) / levels.new_tensor(RGB_STD)[:, None, None]


def normalise_flow(flow: Tensor) -> Tensor:
    """Coded displacements, uint8 -> float32 of the same shape, 0 where nothing moves."""
    return (flow.float() - FLOW_MEAN) / FLOW_STD
