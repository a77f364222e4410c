"""Selection of the decoding device: resolves `data.decode_at` for a worker's device, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twostream_ray.data.loading.decode_device import device_decoder_fault
from twostream_ray.data.loading.settings import DataConfig, DecodeAt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeChoice:
    """Where samples are decoded, and why."""

    at: DecodeAt
    """device, worker or stream; never auto."""
    reason: str
    """Clause for the log."""
    fell_back: bool = False
    """Whether the settings requested `device` and it is not possible."""


def choose_decode_at(config: DataConfig, device: torch.device, *, want_flow: bool = True) -> DecodeChoice:
    """Resolve `data.decode_at` for a worker with this device.

    `auto` becomes `device` on a GPU that supports it, otherwise `worker`; `device` falls back to `worker` if the
    device does not support it or the network takes no flow (`want_flow` False).
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
    fault = device_decoder_fault(device)
    if fault is not None:
        return DecodeChoice(at="worker", reason=fault, fell_back=wanted == "device")
    return DecodeChoice(at="device", reason=f"{device} decodes the flow fields of a batch in lists")
