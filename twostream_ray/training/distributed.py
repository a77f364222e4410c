"""DistributedDataParallel and torch.compile around a network (Li et al. 2020, PyTorch Distributed)."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twostream_ray.models.build import Network
from twostream_ray.training.settings import TrainingConfig


def prepared(network: Network, *, config: TrainingConfig, device: torch.device) -> Network:
    """The network on its device, laid out and compiled as the settings say; before the optimiser takes its parameters.

    Names and shapes of the parameters stay, so checkpoints go from any setting to any other.

    Raises:
        ConfigError: activation checkpointing was wanted of a network with batch normalisation that learns.
    """
    network.to(device)
    if config.activation_checkpointing:
        network.checkpoint_activations()
    if config.channels_last:
        network.to_channels_last()
    if config.compile:
        network.compile()
    return network


def distributed(network: Network, *, config: TrainingConfig, device: torch.device) -> nn.Module:
    """The network, in a group of several workers inside DistributedDataParallel.

    Gradients are reduced as soon as the backward pass has filled a bucket of them: those of the fully connected
    layers, most of all of VGG's, while the convolutions' are still computed.
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
