"""Benchmark of the training step on a batch that is on the device: the upper bound of a training run's speed."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from twostream_ray.data.loading.device import DeviceBatch, to_device
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import TwoStreamError
from twostream_ray.models.build import build_network
from twostream_ray.models.description import training_flops
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig, StepWay
from twostream_ray.training.distributed import no_compiler, prepared, resolved
from twostream_ray.training.matrix_rate import matrix_rate
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.step import StepOutcome, TrainingStep

_WARM_UP = {"cuda": 3, "cpu": 1}
_PROFILED_STEPS = 3
_PROFILED_ROWS = 25


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """Speed and memory of training steps of one way."""

    way: StepWay
    device: str
    precision: str
    seconds: float
    """Median time of a step."""
    samples_per_second: float
    teraflops_per_second: float
    """Of forward and backward, counting a multiply-add as two operations; frozen towers need fewer per sample."""
    matrix_rate_share: float
    """Share of the device's rate of large matrix products in the same precision."""
    peak_gigabytes: float
    """Peak memory in 1e9 bytes, of the GPU or of the process."""
    loss: float
    """Of the last step."""
    kernels: str
    """Table of the slowest kernels; empty unless requested."""


@dataclass(frozen=True, kw_only=True)
class StepFailure:
    """A way that could not be measured, for example for lack of memory."""

    way: StepWay
    reason: str


def benchmark_step(config: BenchmarkStepConfig) -> Iterator[StepSpeed | StepFailure]:
    """Time complete training steps (normalise, forward, backward, update), each way in a process of its own.

    In one process the peak memory of a way would include that of the ways before it.

    Raises:
        ConfigError: the settings contradict each other or the size of frames.
    """
    on_gpu = torch.cuda.is_available()
    for way in config.ways or default_ways(config.model, on_gpu=on_gpu):
        with torch.device("meta"):
            network = build_network(
                model_of(config, way), num_classes=config.num_classes, flow_length=config.flow_length, pretrained=False
            )
        flops = training_flops(
            network, flow_length=config.flow_length, num_snippets=config.num_snippets, size_px=config.size_px
        )
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                speed = pool.submit(_measure, config, way, flops).result()
            except TwoStreamError:
                raise
            except Exception as error:  # noqa: BLE001  (out of memory, killed, not compilable: the other ways may work)
                yield StepFailure(way=way, reason=" ".join(f"{type(error).__name__}: {error}".split())[:200])
            else:
                yield speed


def default_ways(model: ModelConfig, *, on_gpu: bool) -> tuple[StepWay, ...]:
    """All ways on a GPU; on a CPU, where layout and compilation gain nothing, eager and frozen."""
    ways: tuple[StepWay, ...] = ("eager", "channels_last", "compiled", "frozen") if on_gpu else ("eager", "frozen")
    return tuple(way for way in ways if way != "frozen" or model.architecture == "fused")


def model_of(config: BenchmarkStepConfig, way: StepWay) -> ModelConfig:
    """The network of a way; for `frozen` its towers are trained only above the first fusion layer.

    Raises:
        ConfigError: `frozen` was requested of a network without fusion layers.
    """
    return replace(config.model, freeze_below_fusion=True) if way == "frozen" else config.model


def _measure(config: BenchmarkStepConfig, way: StepWay, flops: float) -> StepSpeed:
    """Measure one way; `flops` is the number of floating-point operations per sample."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    compiles = way == "compiled" or (way == "frozen" and on_gpu and no_compiler(device) is None)
    layout = compiles or way == "channels_last" or (way == "frozen" and on_gpu)
    training = resolved(replace(config.training, channels_last=layout, compile=compiles), device)
    torch.manual_seed(0)
    network = build_network(
        model_of(config, way), num_classes=config.num_classes, flow_length=config.flow_length, pretrained=False
    )
    network = prepared(network, config=training, device=device).train()
    learn = TrainingStep(network, build_optimiser(network, config=training), config=training, seed=0, device=device)
    batch = to_device(random_batch(config), device)

    def timed(step: int) -> tuple[float, StepOutcome]:
        started = time.perf_counter()
        outcome = learn(batch, epoch=0, step=step, num_steps=10**6)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started, outcome

    rates = [matrix_rate(device, precision=learn.precision)]
    warm_up = _WARM_UP[device.type]
    for step in range(warm_up):
        timed(step)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times, outcomes = zip(*(timed(warm_up + step) for step in range(config.steps)), strict=True)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Measured twice, as other processes may have used the cores the first time.
    rates.append(matrix_rate(device, precision=learn.precision))
    seconds = statistics.median(times)
    rate = flops * config.batch / seconds
    return StepSpeed(
        way=way,
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        precision=learn.precision,
        seconds=seconds,
        samples_per_second=config.batch / seconds,
        teraflops_per_second=rate / 1e12,
        matrix_rate_share=rate / max(rates),
        peak_gigabytes=peak / 1e9,
        loss=float(outcomes[-1].loss),
        kernels=_kernels(learn, batch) if config.profile else "",
    )


def random_batch(config: BenchmarkStepConfig) -> Batch:
    """A batch of uniform noise with random labels."""
    rng = np.random.default_rng(0)
    shape, size = (config.batch, config.num_snippets), (config.size_px, config.size_px)
    return Batch(
        rgb=rng.integers(0, 256, (*shape, 3, *size), dtype=np.uint8),
        flow=rng.integers(0, 256, (*shape, 2 * config.flow_length, *size), dtype=np.uint8),
        labels=rng.integers(0, config.num_classes, config.batch),
        weights=np.ones(config.batch, np.float32),
        clips=np.arange(config.batch),
        total=float(config.batch),
    )


def _kernels(learn: TrainingStep, batch: DeviceBatch) -> str:
    """Table of the slowest kernels of a few steps, by torch's profiler."""
    on_gpu = learn.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for step in range(_PROFILED_STEPS):
            learn(batch, epoch=0, step=step, num_steps=10**6)
        if on_gpu:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=_PROFILED_ROWS, max_name_column_width=80)
