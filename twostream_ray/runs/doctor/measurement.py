"""Throughput measurement of the stages of a training on a cluster, each by itself, with the training's resources."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from twostream_ray.data.loading.pipeline import READING_CPUS
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.private_cluster import private_folder
from twostream_ray.runs.doctor.probes import SampleRate, StepRate, WorkerProbe, read_for
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.preflight import require_lanes
from twostream_ray.runs.train.run import build_on_meta_device

_ROOM_S = 60.0
_STEPS_TOGETHER = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Throughput of each stage by itself; rates are sums over all workers."""

    workers: int
    cpus: float
    """CPU cores of the cluster."""
    gpus: int
    """GPUs among the workers' devices."""
    global_batch: int
    device: str
    matrix_rate: float
    """Floating-point operations per second of one worker's device in large matrix products."""
    reading: SampleRate
    """Of all reading tasks together."""
    read_tasks: int
    stored_bytes: float
    """Mean bytes of a clip in the shards, both streams."""
    decoding: SampleRate
    decode_at: str
    decoders: int
    """Decoding processes or threads of all workers."""
    transfer_bytes: float
    """Bytes per second from host to device, one worker; 0 where nothing is copied."""
    sample_bytes: float
    """Bytes of a decoded sample."""
    step: StepRate
    """Of the slowest worker, without exchanging gradients."""
    together: StepRate | None
    """The same with gradients exchanged; None for one worker."""
    all_reduce_s: float
    """Seconds of an all-reduce of all gradients; 0 for one worker."""
    gradient_bytes: float
    whole_rate: float = 0.0
    """Samples per second of all workers' loaders and steps at once; 0 with GPUs, or if not measured."""


def measure(
    config: ExperimentConfig, shard_set: ShardSet, *, seconds: float, report_progress: Callable[[str], None]
) -> Measured:
    """Measure every stage with as many workers as the training would have; inside `ray_session`.

    Raises:
        ClusterError: the workers' resources are not free.
        ConfigError: the settings are invalid.
        ShardError, DecodeError: the shards are damaged.
    """
    import ray

    package, network = build_on_meta_device(config, shard_set)
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    workers = config.workers.most_workers(gpus=gpus)
    require_lanes(config, workers=workers)
    cpus = config.workers.cpus_per_worker or max(0.1, total.get("CPU", 1) / 2 / workers)
    share, needs = {"CPU": cpus} | ({"GPU": 1.0} if gpus else {}), (network.needs_rgb, network.needs_flow)
    with _probes(config, package, shard_set, share=share, workers=workers, needs=needs) as probes:
        report_progress("reading")
        plans = ray.get([probe.plan.remote() for probe in probes])
        reading, tasks = _read(ray, plans, seconds=seconds, decodes=False)
        report_progress("decoding")
        decoded = ray.get([probe.decode.remote(seconds) for probe in probes])
        if None in decoded:
            decoding, decoders = _read(ray, plans, seconds=seconds, decodes=True)
        else:
            decoding, decoders = _sum_of(decoded), sum(processes or 2 for *_, processes, _ in plans)
        report_progress("steps")
        device, rate = ray.get(probes[0].device.remote())
        step = _slowest(ray.get([probe.step.remote(seconds) for probe in probes]))
        whole = 0.0 if gpus else sum(ray.get([probe.pipeline.remote(seconds) for probe in probes]))
        transfer = min(ray.get([probe.transfer.remote(seconds) for probe in probes]))
        report_progress("all-reduce")
        together, all_reduce = _together(ray, probes) if workers > 1 else (None, 0.0)
    crop, sampling = config.data.transforms.crop_px, config.data.sampling
    channels = 3 * needs[0] + 2 * sampling.flow_length * needs[1]
    learnt = sum(one.numel() for one in network.parameters() if one.requires_grad)
    return Measured(
        workers=workers,
        cpus=float(total.get("CPU", 1)),
        gpus=workers if gpus else 0,
        global_batch=config.training.global_batch,
        device=device,
        matrix_rate=rate,
        reading=reading,
        read_tasks=tasks,
        stored_bytes=sum(shard_set.shard_bytes) / max(1, len(shard_set.index)),
        decoding=decoding,
        decode_at=plans[0][-1],
        decoders=decoders,
        transfer_bytes=transfer,
        sample_bytes=float(sampling.num_snippets * channels * crop**2),
        step=step,
        together=together,
        all_reduce_s=all_reduce,
        gradient_bytes=learnt * (2.0 if config.training.compress_gradients else 4.0),
        whole_rate=whole,
    )


@contextmanager
def _probes(
    config: ExperimentConfig, package: Any, shard_set: ShardSet, *, share: dict[str, float], workers: int, needs: Any
) -> Iterator[list[Any]]:
    """Actors with the workers' resources, placed as by Ray Train."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.placement_group([share] * workers, strategy="PACK")
    actors: list[Any] = []
    try:
        if not group.wait(_ROOM_S):
            raise ClusterError(
                f"measuring speed needs room for {workers} workers of {share}, which is not free: run the doctor again "
                "when the cluster is idle, or leave speed out with --speed false"
            )
        actor = ray.remote(WorkerProbe)
        for rank in range(workers):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            actors.append(
                actor.options(
                    num_cpus=share["CPU"], num_gpus=share.get("GPU", 0), scheduling_strategy=where, max_concurrency=1
                ).remote(config, package, shard_set, rank=rank, world_size=workers, needs=needs)
            )
        yield actors
    finally:
        for one in actors:
            ray.kill(one)
        ray.util.remove_placement_group(group)


def _read(ray: Any, plans: list[Any], *, seconds: float, decodes: bool) -> tuple[SampleRate, int]:
    """All workers' reading tasks at once, each on its own units."""
    read = ray.remote(read_for).options(num_cpus=READING_CPUS)
    started = []
    for reader, units, tasks, _, _ in plans:
        shared = ray.put(reader)
        tasks = min(tasks, len(units))
        started += [read.remote(shared, units[number::tasks], seconds, decodes=decodes) for number in range(tasks)]
    return _sum_of(ray.get(started)), len(started)


def _sum_of(rates: list[SampleRate]) -> SampleRate:
    """The rate of several tasks together."""
    return SampleRate(
        samples_per_second=sum(rate.samples_per_second for rate in rates),
        cpu_seconds=statistics.mean(rate.cpu_seconds for rate in rates),
        bytes_per_sample=statistics.mean(rate.bytes_per_sample for rate in rates),
        first_byte_s=statistics.median(rate.first_byte_s for rate in rates),
        clips_per_request=statistics.mean(rate.clips_per_request for rate in rates),
    )


def _slowest(rates: list[StepRate]) -> StepRate:
    return max(rates, key=lambda rate: rate.seconds)


def _together(ray: Any, probes: list[Any]) -> tuple[StepRate, float]:
    """Steps that exchange gradients, and the seconds of an all-reduce by itself."""
    folder = private_folder()
    shared = folder is None
    init = ray.get(probes[0].free_address.remote()) if shared else f"file://{folder}/doctor-{uuid4().hex}"
    ray.get([probe.join_process_group.remote(init) for probe in probes])
    all_reduce = max(ray.get([probe.all_reduce.remote(_STEPS_TOGETHER) for probe in probes]))
    together = _slowest(ray.get([probe.step_together.remote(_STEPS_TOGETHER) for probe in probes]))
    ray.get([probe.leave_process_group.remote() for probe in probes])
    return together, all_reduce
