"""Where samples are decoded: what `data.decode_at` comes to on a worker's device, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twostream_ray.data.loading.decode_device import engine_fault
from twostream_ray.data.loading.settings import DataConfig, DecodeAt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeChoice:
    """Where samples are decoded."""

    at: DecodeAt
    """device, worker or stream."""
    reason: str
    """Part of a sentence."""
    fell_back: bool = False
    """Whether the settings asked for something else."""


def choose_decode_at(config: DataConfig, device: torch.device, *, want_flow: bool = True) -> DecodeChoice:
    """Where a worker with this device has its samples decoded; `want_flow` False where the network takes RGB alone.

    `auto` is `device` on a GPU that can, and `worker` elsewhere; a `device` that cannot falls back to `worker`.
    """
    wanted = config.decode_at
    if wanted in ("worker", "stream"):
        return DecodeChoice(at=wanted, reason=f"data.decode_at is {wanted}")
    if not want_flow:
        return DecodeChoice(at="worker", reason="the network takes no flow", fell_back=wanted == "device")
    if wanted == "auto":
        if device.type == "cpu":
            return DecodeChoice(at="worker", reason="the network is on a CPU")
        if config.sample_cache is not None:
            return DecodeChoice(at="worker", reason="data.sample_cache keeps decoded samples")
        if config.sampling.flow_stack == "trajectory":
            return DecodeChoice(at="worker", reason="flow along trajectories is sampled on CPUs")
    fault = engine_fault(device)
    if fault is not None:
        return DecodeChoice(at="worker", reason=fault, fell_back=wanted == "device")
    return DecodeChoice(at="device", reason=f"{device} decodes the flow fields of a batch in lists")
