"""Benchmark of the training step on tensors in memory: the ceiling of every training run."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from twostream_ray.data.loading.device import to_device
from twostream_ray.data.snippets import Batch
from twostream_ray.models import description
from twostream_ray.models.build import build_network
from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig
from twostream_ray.training.distributed import prepared
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.step import TrainingStep

_FORWARD_AND_BACKWARD = 3
"""Backward takes about twice forward: once for the maps, once for the weights."""


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """Speed of training steps."""

    device: str
    seconds: float
    """Median of a step."""
    samples_per_second: float
    teraflops_per_second: float
    """Of forward and backward, a multiply and an add counted as two."""
    peak_gigabytes: float
    """Most memory held, in 1e9 bytes: of the GPU, or of the process."""


def benchmark_step(config: BenchmarkStepConfig) -> StepSpeed:
    """Time whole training steps (copy, normalise, forward, backward, update) after one to warm up.

    Raises:
        ConfigError: the settings fit neither each other nor frames of this size.
    """
    costs = description.describe(
        config.model,
        num_classes=config.num_classes,
        flow_length=config.flow_length,
        num_snippets=config.num_snippets,
        size_px=config.size_px,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = build_network(
        config.model, num_classes=config.num_classes, flow_length=config.flow_length, pretrained=False
    )
    network = prepared(network, config=config.training, device=device)
    optimiser = build_optimiser(network, config=config.training)
    learn = TrainingStep(network, optimiser, config=config.training, seed=0, device=device)
    rng = np.random.default_rng(0)
    shape = (config.batch, config.num_snippets)
    size = (config.size_px, config.size_px)
    batch = Batch(
        rgb=rng.integers(0, 256, (*shape, 3, *size), dtype=np.uint8),
        flow=rng.integers(0, 256, (*shape, 2 * config.flow_length, *size), dtype=np.uint8),
        labels=rng.integers(0, config.num_classes, config.batch),
        weights=np.ones(config.batch, np.float32),
        clips=np.arange(config.batch),
        total=float(config.batch),
    )
    times = []
    for step in range(config.steps + 1):
        started = time.perf_counter()
        learn(to_device(batch, device), epoch=0, step=step, num_steps=config.steps + 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[1:])
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    flops = _FORWARD_AND_BACKWARD * costs["gflops_forward"] * 1e9 * config.batch
    return StepSpeed(
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        seconds=seconds,
        samples_per_second=config.batch / seconds,
        teraflops_per_second=flops / seconds / 1e12,
        peak_gigabytes=peak / 1e9,
    )
