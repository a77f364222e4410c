"""Peak memory estimate of a training step with torch's fake tensors, which have shapes and lifetimes but no memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from twostream_ray.data.loading.device import DeviceBatch
from twostream_ray.models.activations import StorageCount
from twostream_ray.models.build import build_network
from twostream_ray.models.settings import ModelConfig
from twostream_ray.training.ema import WeightEma
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.training.step import TrainingStep

CUDA_BYTES = 3 << 29
"""Overhead on a GPU: CUDA context, cuDNN and NCCL workspaces, and fragmentation of the allocator."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of one worker's training step, in bytes."""

    state: int
    """Weights, their moving average, the optimiser's moments and gradients."""
    peak: int
    """Peak memory, including the state and the batches on the device."""
    gradients: int
    """Size of the gradients that workers reduce in each step, float32."""


def step_memory(
    model: ModelConfig,
    training: TrainingConfig,
    *,
    num_classes: int,
    num_snippets: int,
    flow_length: int,
    size_px: int,
    samples: int,
    workers: int = 1,
) -> StepMemory:
    """Memory of a step of so many samples a worker; `training` has no `auto` left (`distributed.resolved`).

    A compiled network takes less. What kernels take for themselves within an operation is not seen.

    Raises:
        ConfigError: the settings fit neither each other nor frames of this size.
    """
    # Fake tensors have no values for a check of the loss, and compilation needs a real device.
    training = replace(training, on_nonfinite="stop", compile=False, channels_last=False)
    device = torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), StorageCount() as count:
        network = build_network(model, num_classes=num_classes, flow_length=flow_length, pretrained=False)
        if training.activation_checkpointing:
            network.checkpoint_activations()
        network.train()
        average = WeightEma(network, decay=training.average_decay) if training.average_decay else None
        learn = TrainingStep(
            network, build_optimiser(network, config=training), config=training, seed=0, device=device, average=average
        )
        shape, size = (samples, num_snippets), (size_px, size_px)
        batch = DeviceBatch(
            rgb=torch.empty(*shape, 3, *size, dtype=torch.uint8) if network.needs_rgb else None,
            flow=torch.empty(*shape, 2 * flow_length, *size, dtype=torch.uint8) if network.needs_flow else None,
            labels=torch.zeros(samples, dtype=torch.int64),
            weights=torch.ones(samples),
            clips=np.arange(samples),
            total=float(samples),
        )
        batch_bytes = sum(one.nbytes for one in (batch.rgb, batch.flow) if one is not None)
        learn(batch, epoch=0, step=0, num_steps=10)
        count.peak = count.live  # the optimiser's moments are there from now on
        learn(batch, epoch=0, step=1, num_steps=10)
        gradients = 4 * sum(one.numel() for one in network.parameters() if one.requires_grad)
        state = count.live - batch_bytes
    # The next batch is copied during the step; with several workers, gradient buckets are allocated permanently.
    buckets = gradients if workers > 1 else 0
    return StepMemory(state=state + buckets, peak=count.peak + batch_bytes + buckets, gradients=gradients)
