"""DistributedDataParallel (Li et al. 2020), torch.compile, precision and memory format, chosen for the device."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twostream_ray.models.build import Network
from twostream_ray.training.settings import TrainingConfig


def resolved(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """The settings with every `auto` resolved for the device."""
    on_gpu = device.type == "cuda"
    has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = ("bfloat16" if has_bfloat16 else "float32") if config.precision == "auto" else config.precision
    return replace(
        config,
        precision=precision,
        channels_last=on_gpu if config.channels_last == "auto" else config.channels_last,
        compile=on_gpu and no_compiler(device) is None if config.compile == "auto" else config.compile,
    )


def no_compiler(device: torch.device) -> str | None:
    """Why torch.compile cannot be used with a GPU on this machine; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs a GPU of compute capability 7.0"
    # Triton builds its launcher on first use.
    compilers = (os.environ.get("CC"), "gcc", "clang")
    if not any(shutil.which(name) for name in compilers if name):
        return "there is no C compiler (gcc, clang or $CC)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (python3-dev) are not installed"
    return None


def prepared(network: Network, *, config: TrainingConfig, device: torch.device) -> Network:
    """Move the network to its device and apply memory format and compilation; call it before building the optimiser.

    Names and shapes of parameters are unchanged, so checkpoints are compatible across these settings.

    Raises:
        ConfigError: activation checkpointing is set for a network with trainable batch normalisation.
    """
    config = resolved(config, device)
    network.to(device)
    if config.activation_checkpointing:
        network.checkpoint_activations()
    if config.channels_last:
        network.to_channels_last()
    if config.compile:
        network.compile()
    return network


def distributed(network: Network, *, config: TrainingConfig, device: torch.device) -> nn.Module:
    """Wrap the network in DistributedDataParallel if there are several workers.

    Gradient reduction overlaps with the backward pass, bucket by bucket: the large gradients of VGG's fully connected
    layers are reduced while those of the convolutions are still computed.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return network
    model = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=config.micro_batches == 1,
    )
    if config.compress_gradients:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        model.register_comm_hook(None, bf16_compress_hook)
    return model


def unwrapped(model: nn.Module) -> Network:
    """The network inside DistributedDataParallel, or itself."""
    return cast(Network, getattr(model, "module", model))
