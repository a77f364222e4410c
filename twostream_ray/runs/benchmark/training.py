"""Training benchmark: overhead of Ray Train and of reading shards over the same steps in a bare process group."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from twostream_ray.data.loading.decode_choice import choose_decode_at
from twostream_ray.data.loading.decode_device import device_decoder_fault
from twostream_ray.data.loading.device import DeviceBatch, on_device
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.shards.shards import open_shards
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import ConfigError, TrainingError
from twostream_ray.models.build import build_network
from twostream_ray.models.description import training_flops
from twostream_ray.runs.benchmark.settings import BenchmarkTrainConfig
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.train.ray_private import process_group_config
from twostream_ray.training.distributed import distributed, prepared, resolved, unwrapped
from twostream_ray.training.matrix_rate import matrix_rate
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import Precision
from twostream_ray.training.step import TrainingStep

_TIMEOUT_S = 1800.0
_WARM_UP = 2

Source = Literal["memory", "shards"]
Progress = Callable[[int, int], None]
"""Called with (measurements done, measurements in all)."""


@dataclass(frozen=True, kw_only=True)
class TrainSpeed:
    """Throughput of one way of training: medians over rounds."""

    name: str
    samples_per_second: float
    """Sum over workers."""
    step_s: float
    """Seconds per step, of which:"""
    data_wait_s: float
    """waiting for a batch,"""
    forward_s: float
    """forward, copy and normalising with it,"""
    backward_s: float
    """backward without other workers,"""
    all_reduce_s: float
    """what exchanging gradients adds to backward,"""
    update_s: float
    """optimiser."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark:
    """Speed of all ways, and the bare loop's floating-point rate compared with the device's."""

    speeds: list[TrainSpeed]
    device: str
    teraflops_per_second: float
    """Of a worker's forward and backward in the bare loop, counting a multiply-add as two operations."""
    limit_teraflops_per_second: float
    """Of large matrix products on the same device in the same precision."""
    left_out: str | None
    """The way that this machine does not support, and why."""


def benchmark_train(config: BenchmarkTrainConfig, *, progress: Progress | None = None) -> TrainBenchmark:
    """Measure every way, one after the other in each round, so that noise affects all alike.

    Raises:
        ShardError: the shards are missing or damaged.
        ConfigError: global batch, lanes, workers and clips do not fit together.
    """
    shard_set = open_shards(config.data.shards)
    config = replace(config, data=replace(config.data, shards=shard_set.uri))
    workers = config.num_workers or torch.cuda.device_count() or 2
    if config.training.global_batch > len(shard_set.split(config.data.split_to_train)):
        raise ConfigError(
            f"training.global_batch={config.training.global_batch} wants as many clips in split "
            f"{config.data.split_to_train!r}, got {len(shard_set.split(config.data.split_to_train))}"
        )
    ways: dict[str, Callable[[], list[dict[str, float]]]] = {
        "bare process group, memory": lambda: _bare(config, workers=workers),
        "Ray Train, memory": lambda: _in_ray(config, "memory", workers=workers),
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fault = device_decoder_fault(device)
    for at in ("device", "worker", "stream") if fault is None else ("worker", "stream"):
        fed = replace(config, data=replace(config.data, decode_at=at))
        ways[f"Ray Train, shards, decode_at {at}"] = lambda fed=fed: _in_ray(  # type: ignore[misc]
            fed, "shards", workers=workers
        )
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with ray_session():
        for turn in range(config.rounds):
            for number, (name, way) in enumerate(ways.items()):
                taken[name].append(_over_workers(way()))
                if progress is not None:
                    progress(turn * len(ways) + number + 1, config.rounds * len(ways))
    speeds = [
        TrainSpeed(name=name, **{key: statistics.median(one[key] for one in rounds) for key in rounds[0]})
        for name, rounds in taken.items()
    ]
    return TrainBenchmark(
        speeds=speeds,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU, 1 thread per worker",
        teraflops_per_second=_flops_per_sample(config) * speeds[0].samples_per_second / workers / 1e12,
        limit_teraflops_per_second=_matrix_rate(config, device) / 1e12,
        left_out=None if fault is None else f"decode_at device was left out: {fault}",
    )


def _over_workers(by_worker: list[dict[str, float]]) -> dict[str, float]:
    """A measurement over all workers: all samples divided by the slowest worker's time, and mean phases."""
    seconds = max(worker["seconds"] for worker in by_worker)
    phases = ("data_wait_s", "forward_s", "backward_s", "all_reduce_s", "update_s")
    return {
        "samples_per_second": sum(worker["samples"] for worker in by_worker) / seconds,
        "step_s": seconds / by_worker[0]["steps"],
        **{phase: statistics.mean(worker[phase] for worker in by_worker) for phase in phases},
    }


def _bare(config: BenchmarkTrainConfig, *, workers: int) -> list[dict[str, float]]:
    """Measure plain processes in a process group, started as by torchrun."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as folder:
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            run_id=str(os.getpid()),
            max_restarts=0,
            start_method="spawn",
            logs_specs=None,
        )
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        results: dict[int, dict[str, float]] = elastic_launch(launch, _bare_worker)(config, folder)
    return list(results.values())


def _bare_worker(config: BenchmarkTrainConfig, _folder: str) -> dict[str, float]:
    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=600))
    try:
        return _measure(config, "memory", rank=rank, workers=workers, device=device)
    finally:
        dist.destroy_process_group()


def _in_ray(config: BenchmarkTrainConfig, source: Source, *, workers: int) -> list[dict[str, float]]:
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer, get_device

    def run(arguments: dict[str, Any]) -> None:
        import ray.train

        context = ray.train.get_context()
        made = _measure(
            arguments["config"],
            arguments["source"],
            rank=context.get_world_rank(),
            workers=context.get_world_size(),
            device=get_device(),
        )
        ray.get(arguments["results"].post.remote(made))

    from twostream_ray.runs.train.mailbox import Mailbox

    results: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
    gpus = torch.cuda.is_available()
    share = {"CPU": ray.cluster_resources()["CPU"] / 2 / workers, **({"GPU": 1.0} if gpus else {})}
    require_room([share] * workers, what="the workers of the benchmark", way_out="lower num_workers")
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            run,
            train_loop_config={"config": config, "source": source, "results": results},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus,
                resources_per_worker=share,
            ),
            torch_config=process_group_config(timeout_s=_TIMEOUT_S),
            run_config=ray.train.RunConfig(name="benchmark", storage_path=folder),
        ).fit()
    made: list[dict[str, float]] = ray.get(results.take.remote())
    if len(made) != workers:
        raise TrainingError(f"measurements of {workers} workers were wanted, got {len(made)}: look at Ray's logs")
    return made


def _measure(
    config: BenchmarkTrainConfig, source: Source, *, rank: int, workers: int, device: torch.device
) -> dict[str, float]:
    """One worker's steps and their phases."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shard_set = open_shards(config.data.shards)
    network = prepared(
        build_network(
            config.model,
            num_classes=len(shard_set.classes),
            flow_length=config.data.sampling.flow_length,
            pretrained=False,
        ),
        config=config.training,
        device=device,
    )
    optimiser = build_optimiser(network, config=config.training)
    model = distributed(network, config=config.training, device=device)
    batches = _batches(
        config, source, rank=rank, workers=workers, device=device, network_needs=(network.needs_rgb, network.needs_flow)
    )
    seconds: dict[str, float] = {}

    def learn(model: nn.Module, into: dict[str, float] | None) -> TrainingStep:
        return TrainingStep(model, optimiser, config=config.training, seed=0, device=device, seconds=into)

    model.train()
    waited, samples, started = 0.0, 0.0, 0.0
    stream = on_device(batches, device)
    whole, parts = learn(model, None), learn(model, seconds)
    for number in range(_WARM_UP + config.steps):
        if number == _WARM_UP:
            _wait_for_all(device)
            waited, samples, started = 0.0, 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        samples += float(batch.weights.sum())
        # Phases of measured steps are timed on a CPU only: on a GPU timing them would synchronise.
        (parts if device.type == "cpu" and number >= _WARM_UP else whole)(batch, epoch=0, step=number, num_steps=10**6)
    _wait_for_all(device)
    total = time.perf_counter() - started
    turns = max(3, config.steps // 4)
    timed = config.steps
    if device.type != "cpu":
        _repeat(parts, batch, turns=turns)
        timed = turns
    phases = {phase: spent / timed for phase, spent in seconds.items()}
    unwrapped_seconds: dict[str, float] = {}
    _repeat(learn(unwrapped(model), unwrapped_seconds), batch, turns=turns)
    _wait_for_all(device)
    backward = min(unwrapped_seconds["backward"] / turns, phases["backward"])
    return {
        "seconds": total,
        "samples": samples,
        "steps": float(config.steps),
        "data_wait_s": waited / config.steps,
        "forward_s": phases["forward"],
        "backward_s": backward,
        "all_reduce_s": phases["backward"] - backward,
        "update_s": phases["update"],
    }


def _repeat(step: TrainingStep, batch: DeviceBatch, *, turns: int) -> None:
    for _ in range(turns):
        step(batch, epoch=0, step=0, num_steps=10**6)


def _wait_for_all(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if dist.is_initialized():
        dist.barrier()


def _batches(
    config: BenchmarkTrainConfig,
    source: Source,
    *,
    rank: int,
    workers: int,
    device: torch.device,
    network_needs: tuple[bool, bool],
) -> Iterator[Batch]:
    """Endless batches, only full ones, so that every way makes the same steps."""
    shard_set = open_shards(config.data.shards)
    clips = len(shard_set.split(config.data.split_to_train))
    whole_steps = clips // config.training.global_batch
    passes = 1 if source == "memory" else -(-(_WARM_UP + config.steps) // whole_steps)
    # Batches kept in memory are decoded once.
    choice = choose_decode_at(config.data, device, want_flow=network_needs[1])
    loader = SnippetLoader(
        shard_set,
        config=replace(config.data, decode_at="worker" if source == "memory" else choice.at),
        passes=[Pass(split=config.data.split_to_train, epoch=epoch, training=True) for epoch in range(passes)],
        global_batch=config.training.global_batch,
        rank=rank,
        world_size=workers,
        want_rgb=network_needs[0],
        want_flow=network_needs[1],
        through_ray=source == "shards",
    )

    def whole() -> Iterator[Batch]:
        for _, batches in loader:
            for number, batch in enumerate(batches):
                if number < whole_steps:
                    yield batch

    if source == "shards":
        return whole()
    return itertools.cycle(list(itertools.islice(whole(), min(config.memory_batches, whole_steps))))


def _flops_per_sample(config: BenchmarkTrainConfig) -> float:
    sampling = config.data.sampling
    with torch.device("meta"):
        network = build_network(
            config.model,
            num_classes=len(open_shards(config.data.shards).classes),
            flow_length=sampling.flow_length,
            pretrained=False,
        )
    return training_flops(
        network,
        flow_length=sampling.flow_length,
        num_snippets=sampling.num_snippets,
        size_px=config.data.transforms.crop_px,
    )


def _matrix_rate(config: BenchmarkTrainConfig, device: torch.device) -> float:
    """The matrix rate with the threads of a worker."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    chosen: Precision = "bfloat16" if resolved(config.training, device).precision == "bfloat16" else "float32"
    rate = matrix_rate(device, precision=chosen)
    torch.set_num_threads(threads)
    return rate
