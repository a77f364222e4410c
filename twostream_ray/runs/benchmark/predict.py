"""Benchmark of batch prediction: raw videos into Parquet rows, compared with bare loops of the same work."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.model_source import local_model
from twostream_ray.runs.benchmark.settings import BenchmarkPredictConfig
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.score.predict import videos_of
from twostream_ray.runs.score.predict_many import predict_many
from twostream_ray.runs.score.settings import PredictConfig


@dataclass(frozen=True, kw_only=True)
class PredictSpeed:
    """Throughput of one way of predicting: the median over rounds."""

    name: str
    videos_per_second: float
    cores: int
    """CPU cores that it may use."""


Progress = Callable[[int, int], None]
"""Called with (measurements done, measurements in all)."""


def benchmark_predict(config: BenchmarkPredictConfig, *, progress: Progress | None = None) -> list[PredictSpeed]:
    """Measure batch prediction and bare loops on the same videos, one after the other in each round.

    The job's rate is measured from when as many parts are finished as there are actors to 80 % of the videos: neither
    the start of processes nor the end, when some cores have no video left, counts.

    Raises:
        CatalogError: folders, globs or tables name no video.
        ConfigError: there are too few videos for the cores.
        RegistryError, StorageError, CheckpointError: the model cannot be loaded.
    """
    cores = config.cores or len(os.sched_getaffinity(0))
    predicted = PredictConfig(videos=config.videos, model=config.model, tracking=config.tracking, num_actors=cores)
    videos = sorted({storage.absolute(uri) for uri in videos_of(predicted).uris})
    if len(videos) < 16 * cores:
        raise ConfigError(
            f"at least {16 * cores} videos are wanted for {cores} cores, got {len(videos)}: name more, or lower cores"
        )
    some = videos[:: 2 * cores]
    rates: dict[str, list[float]] = {}
    with local_model(config.model, config=config.tracking) as directory, ray_session():
        predicted = replace(predicted, model=str(directory))
        runs: dict[str, tuple[Callable[[], float], int]] = {
            "bare loop, one process": (lambda: _bare_processes(some, directory, cores=1), 1),
            f"bare loop, {cores} processes": (lambda: _bare_processes(some, directory, cores=cores), cores),
            "predict": (lambda: _prediction_rate(predicted), cores),
        }
        for turn in range(config.rounds):
            for number, (name, (run, _)) in enumerate(runs.items()):
                rates.setdefault(name, []).append(run())
                if progress is not None:
                    progress(turn * len(runs) + number + 1, config.rounds * len(runs))
    return [
        PredictSpeed(name=name, videos_per_second=statistics.median(rates[name]), cores=used)
        for name, (_, used) in runs.items()
    ]


def _bare_processes(videos: list[str], directory: Path, *, cores: int) -> float:
    import ray

    task = ray.remote(_bare).options(num_cpus=0)
    return sum(ray.get([task.remote(videos, str(directory)) for _ in range(cores)]))


def _bare(videos: list[str], directory: str) -> float:
    """Videos per second of one thread that reads, decodes, computes flow and scores, but stores nothing."""
    import cv2
    import torch

    from twostream_ray.data.video.prepare import prepare_clip
    from twostream_ray.inference import Classifier

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    classifier = Classifier.load(directory)

    def work(uri: str) -> None:
        clip = prepare_clip(storage.read_bytes(uri), classifier.package.contract, name=uri)
        classifier.score_clip(clip, name=uri)

    work(videos[0])
    started = time.perf_counter()
    for uri in videos:
        work(uri)
    return len(videos) / (time.perf_counter() - started)


def _prediction_rate(config: PredictConfig) -> float:
    seen: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        predict_many(replace(config, out=folder), progress=lambda done, _: seen.append((time.perf_counter(), done)))
    last = max(done for _, done in seen)
    steady = [(moment, done) for moment, done in seen if 0 < done <= 0.8 * last]
    (started, first), (ended, done) = steady[(config.num_actors or 1) - 1], steady[-1]
    return (done - first) / (ended - started)
