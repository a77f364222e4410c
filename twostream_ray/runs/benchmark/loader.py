"""Data loader benchmark: each way of decoding, compared with a bare loop and with torch's DataLoader."""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from twostream_ray import storage
from twostream_ray.data.loading.decode_device import device_decoder_fault
from twostream_ray.data.loading.device import on_device
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig, DecodeAt
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.snippets import needed_fields
from twostream_ray.errors import ConfigError
from twostream_ray.runs.benchmark.folders import FolderClip, FolderDataset, Frames, encoded_clips, extract
from twostream_ray.runs.benchmark.settings import BenchmarkLoaderConfig
from twostream_ray.runs.cluster.session import ray_session

_MEASURED_SAMPLES, _WARM_UP_SAMPLES = 100, 200
"""Least samples per core: those measured, a few seconds of decoding, and those read while processes start."""
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """Throughput of one way of reading: the median over rounds."""

    name: str
    samples_per_second: float
    cores: int
    """CPU cores that it may use."""
    megabytes_per_sample: float
    """Stored bytes read per sample, in 1e6."""
    opens_per_sample: float
    """Files opened, or objects requested, per sample."""
    first_batch_s: float | None
    """Seconds from the start of a later pass to its first batch; None where there are no batches."""

    @property
    def megabytes_per_second(self) -> float:
        """Stored bytes read per second, in 1e6."""
        return self.samples_per_second * self.megabytes_per_sample


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """One measurement of one way of reading."""

    rate: float
    first_batch_s: float | None = None


Progress = Callable[[int, int], None]
"""Called with (measurements done, measurements in all)."""


def benchmark_loader(config: BenchmarkLoaderConfig, *, progress: Progress | None = None) -> list[LoaderSpeed]:
    """Measure every way of reading on the same clips, one after the other in each round: noise affects all alike.

    A measurement has passes to warm up, two or more measured ones and, for ways that prefetch, one that is aborted.

    Raises:
        ShardError: the shards are missing or damaged.
        ConfigError: there are fewer clips than in a batch.
    """
    whole = open_shards(config.data.shards)
    members = whole.split(config.data.split_to_train)[: config.num_clips]
    if len(members) < _BATCH:
        raise ConfigError(
            f"at least {_BATCH} clips are wanted in split {config.data.split_to_train!r} of {config.data.shards}, "
            f"got {len(members)}: choose another split, or ingest more clips"
        )
    shard_set = replace(whole, index=whole.index.filter(np.isin(np.arange(len(whole.index)), members)))
    data = replace(config.data, shards=whole.uri)
    cores = _cores_of(config)
    plan = _Plan.of(len(members), cores=cores)
    encoded = _encoded_bytes(shard_set)
    groups = len({(row["shard"], row["row"] // 16) for row in shard_set.index.to_pylist()})
    shared = (encoded / len(members), groups / len(members))
    paths: dict[str, tuple[Callable[[], _Timing], int, tuple[float, float]]] = {
        "bare loop, one process": (lambda: _bare_processes(shard_set, data, cores=1, plan=plan), 1, shared),
        f"bare loop, {cores} processes": (
            lambda: _bare_processes(shard_set, data, cores=cores, plan=plan),
            cores,
            shared,
        ),
    }
    for way, run in _loader_runs(config, shard_set, data, cores=cores, plan=plan).items():
        paths[way] = (run, cores, shared)
    if config.videos is not None:
        clips = extract(shard_set, videos=storage.absolute(config.videos), out=Path(config.out).absolute())
        _refuse_missing_videos(clips)
        for frames in ("jpeg", "decord in order", "decord seeking"):
            paths[f"torch DataLoader, {frames}"] = (
                lambda frames=frames: _in_new_process(_torch_loader, clips, data, frames=frames, cores=cores),  # type: ignore[misc]
                cores,
                _folder_costs(clips, data, frames=frames),
            )
    timings: dict[str, list[_Timing]] = {name: [] for name in paths}
    with _on_cores(cores), ray_session():
        for turn in range(config.rounds):
            for number, (name, (run, _, _)) in enumerate(paths.items()):
                timings[name].append(run())
                if progress is not None:
                    progress(turn * len(paths) + number + 1, config.rounds * len(paths))
    return [
        LoaderSpeed(
            name=name,
            samples_per_second=statistics.median(timing.rate for timing in timings[name]),
            cores=used,
            megabytes_per_sample=size / 1e6,
            opens_per_sample=opens,
            first_batch_s=_median([timing.first_batch_s for timing in timings[name]]),
        )
        for name, (_, used, (size, opens)) in paths.items()
    ]


def _loader_runs(
    config: BenchmarkLoaderConfig, shard_set: ShardSet, data: DataConfig, *, cores: int, plan: _Plan
) -> dict[str, Callable[[], _Timing]]:
    """This package's loader with each value of data.decode_at."""
    ways: tuple[DecodeAt, ...] = ("device", "worker", "stream")
    workers = config.workers
    return {
        f"loader, {workers} worker{'s' * (workers > 1)}, decode_at {way}": partial(
            _own_loader,
            shard_set,
            # As many decoding tasks as cores; otherwise training's defaults.
            replace(data, decode_at=way, read_tasks=data.read_tasks or (cores // workers if way == "stream" else None)),
            workers=workers,
            cores=cores,
            plan=plan,
        )
        for way in ways
    }


def _cores_of(config: BenchmarkLoaderConfig) -> int:
    machine = len(os.sched_getaffinity(0))
    cores = config.cores or machine
    if not config.workers <= cores <= machine:
        raise ConfigError(
            f"cores must be in [workers, cores of this machine], [{config.workers}, {machine}], got {cores}"
        )
    return cores


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _encoded_bytes(shard_set: ShardSet) -> float:
    clips = (clip for _, clip in encoded_clips(shard_set))
    return float(sum(len(clip.video or b"") + sum(map(len, cast(Sequence[bytes], clip.flow))) for clip in clips))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Number of passes of a measurement."""

    warm_up: int
    measured: int

    @classmethod
    def of(cls, clips: int, *, cores: int) -> _Plan:
        """Enough passes over `clips` for `cores`."""
        warm_up, measured = (math.ceil(samples * cores / clips) for samples in (_WARM_UP_SAMPLES, _MEASURED_SAMPLES))
        return cls(warm_up=warm_up, measured=max(2, measured))


@contextmanager
def _on_cores(cores: int) -> Iterator[None]:
    """Restrict this process, and all that it starts, to so many cores while the block runs."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(whole)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, whole)


def _bare(shard_set: ShardSet, data: DataConfig, passes: int) -> _Timing:
    """This package's decoding in one thread, without Ray, further threads or prefetching."""
    loader = _loader(shard_set, replace(data, decode_at="stream"), passes=passes + 1)
    started, samples = 0.0, 0
    for unit in loader.units():
        if unit.pass_index and not started:
            started = time.perf_counter()
        for block in loader.reader.decode_unit(unit):
            samples += block.num_rows * bool(unit.pass_index)
    return _Timing(rate=samples / (time.perf_counter() - started))


def _bare_processes(shard_set: ShardSet, data: DataConfig, *, cores: int, plan: _Plan) -> _Timing:
    """As many bare loops at once as cores: an upper bound for this machine."""
    import ray

    task = ray.remote(_bare).options(num_cpus=0)
    # Each loop reads all clips, so fewer passes make the same number of samples.
    passes = max(2, plan.measured // cores)
    timings = ray.get([task.remote(shard_set, data, passes) for _ in range(cores)])
    return _Timing(rate=sum(timing.rate for timing in timings))


def _loader(shard_set: ShardSet, data: DataConfig, *, passes: int, rank: int = 0, workers: int = 1) -> SnippetLoader:
    return SnippetLoader(
        shard_set,
        config=data,
        passes=[Pass(split=data.split_to_train, epoch=epoch, training=True) for epoch in range(passes)],
        global_batch=-(-_BATCH // data.lanes) * data.lanes,
        rank=rank,
        world_size=workers,
    )


def _own_loader(shard_set: ShardSet, data: DataConfig, *, workers: int, cores: int, plan: _Plan) -> _Timing:
    import ray

    # Half of the cores, as training reserves them: a worker's decoders and reading tasks follow from it.
    task = ray.remote(_consume).options(num_cpus=cores / 2 / workers)
    ends = ray.get([task.remote(shard_set, data, rank, workers, plan) for rank in range(workers)])
    samples = len(shard_set.index) * plan.measured
    last, before = -1, -1 - plan.measured
    seconds = max(worker[last]["ended"] for worker in ends) - min(worker[before]["ended"] for worker in ends)
    first = [
        passes[number]["first"] - passes[number - 1]["ended"]
        for passes in ends
        for number in range(plan.warm_up, plan.warm_up + plan.measured)
    ]
    return _Timing(rate=samples / seconds, first_batch_s=max(first))


def _consume(shard_set: ShardSet, data: DataConfig, rank: int, workers: int, plan: _Plan) -> list[dict[str, float]]:
    """A training worker that only takes its batches; returns the times of each pass's first batch and end."""
    gpu = torch.device("cuda")
    able = data.decode_at == "device" and torch.cuda.is_available() and device_decoder_fault(gpu) is None
    device = gpu if able else torch.device("cpu")
    passes = plan.warm_up + plan.measured
    loader = _loader(shard_set, data, passes=passes + 1, rank=rank, workers=workers)
    times: list[dict[str, float]] = []
    for _, batches in loader:
        entry: dict[str, float] = {}
        for _ in on_device(batches, device):
            entry.setdefault("first", time.time())
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(entry | {"ended": time.time()})
        if len(times) == passes:
            break
    return times


def _in_new_process(run: Callable[..., _Timing], *arguments: object, **options: object) -> _Timing:
    """Run in a new process: torch's DataLoader and Ray do not shut down cleanly in the same one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(run, *arguments, **options).result()


def _torch_loader(clips: list[FolderClip], data: DataConfig, *, frames: Frames, cores: int) -> _Timing:
    from torch.utils.data import DataLoader

    order = np.random.default_rng(0)
    passes = [(epoch * len(clips) + order.permutation(len(clips))).tolist() for epoch in range(3)]
    dataset: Any = FolderDataset(clips, config=data, frames=frames)
    # One long epoch, so that prefetching does not stop between passes.
    loader: Any = DataLoader(
        dataset,
        batch_size=_BATCH // cores or 1,
        sampler=[uri for one in passes for uri in one],
        num_workers=cores,
        multiprocessing_context="spawn",
    )
    seen, started = 0, 0.0
    for rgb, _ in loader:
        seen += len(rgb)
        if not started and seen >= len(clips):
            started, seen = time.perf_counter(), seen - len(clips)
    return _Timing(rate=seen / (time.perf_counter() - started))


def _folder_costs(clips: list[FolderClip], data: DataConfig, *, frames: Frames) -> tuple[float, float]:
    """Stored bytes per clip, and files opened per sample: frames or video, and both files of every distinct field."""
    stored = 0
    for clip in clips:
        stored += sum(path.stat().st_size for path in Path(clip.folder).glob("flow_*.jpg"))
        stored += (
            sum(path.stat().st_size for path in Path(clip.folder).glob("img_*.jpg"))
            if frames == "jpeg"
            else Path(clip.video).stat().st_size
        )
    fields = np.mean([_distinct_fields(clip, data) for clip in clips])
    pictures = data.sampling.num_snippets if frames == "jpeg" else 1
    return stored / len(clips), float(2 * fields + pictures)


def _distinct_fields(clip: FolderClip, data: DataConfig) -> int:
    times = clip.view(data, epoch=1).times
    return len(needed_fields(times, config=data.sampling, num_frames=clip.num_frames))


def _refuse_missing_videos(clips: list[FolderClip]) -> None:
    missing = [clip.video for clip in clips if not Path(clip.video).exists()]
    if missing:
        raise ConfigError(
            f"the comparison needs the original videos, but {len(missing)} of {len(clips)} are missing, for example "
            f"{missing[0]}: set videos to the root that was ingested, or leave it out"
        )
