"""Benchmark of ingest: raw videos into shards, compared with bare loops of the same decoding, flow and encoding."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from twostream_ray import storage
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.errors import ConfigError
from twostream_ray.runs.benchmark.settings import BenchmarkIngestConfig
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.ingest import catalog_of, ingest
from twostream_ray.runs.settings import IngestConfig


@dataclass(frozen=True, kw_only=True)
class IngestSpeed:
    """Throughput of one way of ingesting: the median over rounds."""

    name: str
    clips_per_second: float
    cores: int
    """CPU cores that it may use."""


Progress = Callable[[int, int], None]
"""Called with (measurements done, measurements in all)."""

_FEWEST_CLIPS = 8
"""Between the first one and 80 % of them some have to finish."""


def benchmark_ingest(config: BenchmarkIngestConfig, *, progress: Progress | None = None) -> list[IngestSpeed]:
    """Measure ingest and bare loops on the same clips, one after the other in each round.

    The rate of ingest is measured from its first finished clip to 80 % of them: neither the start of processes nor the
    end, when some cores have no clip left, counts.

    Raises:
        CatalogError: folders or lists do not match the layout.
        ConfigError: there are fewer clips than cores, or than 8.
    """
    cores = config.cores or len(os.sched_getaffinity(0))
    clips = catalog_of(IngestConfig(catalog=config.catalog, out="")).clips
    wanted = max(cores, _FEWEST_CLIPS)
    if len(clips) < wanted:
        raise ConfigError(
            f"at least {wanted} clips are wanted under {config.catalog.root}, got {len(clips)}: name a larger root"
        )
    runs: dict[str, tuple[Callable[[], float], int]] = {
        "bare loop, one process": (lambda: _bare_processes(clips[:: 2 * cores], config.flow, cores=1), 1),
        f"bare loop, {cores} processes": (
            lambda: _bare_processes(clips[:: 2 * cores], config.flow, cores=cores),
            cores,
        ),
        "ingest": (lambda: _ingest_rate(config), cores),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    with ray_session():
        for turn in range(config.rounds):
            for number, (name, (run, _)) in enumerate(runs.items()):
                rates[name].append(run())
                if progress is not None:
                    progress(turn * len(runs) + number + 1, config.rounds * len(runs))
    return [
        IngestSpeed(name=name, clips_per_second=statistics.median(rates[name]), cores=used)
        for name, (_, used) in runs.items()
    ]


def _bare_processes(clips: tuple[Clip, ...], contract: FlowContract, *, cores: int) -> float:
    import ray

    task = ray.remote(_bare).options(num_cpus=0)
    return sum(ray.get([task.remote(clips, contract) for _ in range(cores)]))


def _bare(clips: tuple[Clip, ...], contract: FlowContract) -> float:
    """Clips per second of one thread that reads, decodes, computes flow, encodes and verifies, but stores nothing."""
    from twostream_ray.data.video.clips import prove_seeking
    from twostream_ray.data.video.prepare import prepare_clip

    def work(clip: Clip) -> None:
        content = storage.read_bytes(clip.uri)
        encoded = prepare_clip(content, contract, name=clip.clip_id)
        prove_seeking(encoded.video or b"", num_frames=encoded.num_frames)

    work(clips[0])
    started = time.perf_counter()
    for clip in clips:
        work(clip)
    return len(clips) / (time.perf_counter() - started)


def _ingest_rate(config: BenchmarkIngestConfig) -> float:
    seen: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        ingest(
            IngestConfig(catalog=config.catalog, out=folder, flow=config.flow, max_bad_fraction=1.0),
            progress=lambda done, *_: seen.append((time.perf_counter(), done)),
        )
    last = max(done for _, done in seen)
    steady = [(moment, done) for moment, done in seen if 0 < done <= 0.8 * last]
    (started, first), (ended, done) = steady[0], steady[-1]
    return (done - first) / (ended - started)
