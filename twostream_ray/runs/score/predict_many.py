"""Batch inference over a bucket: a resumable Ray Data job that scores raw videos in an actor pool and writes Parquet.

An item is a part of at most 16 videos (`prediction_job`): an actor writes it atomically, and a written part is not
repeated. On CPUs each core has an actor that reads, decodes, computes flow and scores; on GPUs CPU tasks prepare parts
and one actor per GPU scores them. Only counts are sent back to the driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from twostream_ray import storage
from twostream_ray.data.protocols import resolve_protocol
from twostream_ray.errors import own_error
from twostream_ray.heads import choose_heads
from twostream_ray.model_package import MODEL_FILES, ModelPackage, check_model
from twostream_ray.model_source import local_model
from twostream_ray.runs.cluster.address import cluster_address
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session, require_cluster
from twostream_ray.runs.score import prediction_job
from twostream_ray.runs.score.predict import videos_of
from twostream_ray.runs.score.predict_tasks import PartScorer, Work, prepare_part
from twostream_ray.runs.score.prediction_job import JobState, Part
from twostream_ray.runs.score.settings import PredictConfig
from twostream_ray.storage import lease
from twostream_ray.storage.temporary_folders import sweep

_ACTORS_OF_A_CLUSTER = 64
"""Assumed number of actors on a cluster if it is not set."""
_MOST_ITEMS = 8192
"""Most blocks of the Ray dataset; larger jobs have several parts in a block."""

Progress = Callable[[int, int], None]
"""Called with (videos done, videos in all), both including those of earlier runs."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Result of a batch prediction."""

    out: str
    """Where the Parquet files are."""
    videos: int
    """All videos in `out`."""
    done_before: int
    """Videos that earlier runs had finished."""
    statuses: dict[str, int]
    """Status -> number of rows that this run wrote."""
    seconds: float
    """Wall time of this run's job."""

    def sentence(self) -> str:
        """The report in one sentence."""
        new = self.videos - self.done_before
        counted = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        rate = f"{new} done now in {self.seconds:.0f} s ({new / self.seconds:.1f} videos/s): {counted}" if new else ""
        before = f"{self.done_before} before" if self.done_before else ""
        return "; ".join(filter(None, [f"{self.videos} videos in {self.out}", rate, before]))

    def next_commands(self) -> list[str]:
        """Commands that read the rows."""
        return [f"python -c 'import pandas; print(pandas.read_parquet({json.dumps(self.out)}))'"]


def predict_many(
    config: PredictConfig, *, progress: Progress | None = None, announce: Callable[[str], None] | None = None
) -> BatchReport:
    """Predict the named videos that have no row at `config.out` yet; finished parts are kept.

    Raises:
        CatalogError: a folder, glob or table names no video.
        RegistryError, CheckpointError: the model cannot be loaded.
        ConfigError: `out` holds other files, or predictions of another model or with other settings.
        StorageError: a store does not answer, or `out` cannot be written.
        ClusterError: the Ray cluster cannot be reached, or has too little room.
        LeaseError: another prediction writes to `out`.
    """
    assert config.out is not None  # noqa: S101  (checked by the verb)
    out = storage.absolute(config.out)
    say = announce or (lambda _: None)
    found = videos_of(config)
    for note in found.notes:
        say(f"note: {note}")
    videos = sorted({storage.absolute(uri) for uri in found.uris})
    sweep()
    with local_model(config.model, config=config.tracking) as directory:
        files = {name: storage.read_bytes(str(directory / name)) for name in MODEL_FILES}
        package = check_model(directory)
    heads = choose_heads(package.heads, config.head, of="the model")
    identity = _identity(config, package, files)
    way_out = "wait for it, or choose another --out"
    with lease.held(storage.join(out, prediction_job.FOLDER), work="predict", way_out=way_out):
        state = prediction_job.open_job(
            out, identity, videos, replace=config.replace, num_actors=_actors_expected(config)
        )
        before = state.num_videos(finished=True)
        if before:
            say(f"{before} of {state.num_videos()} videos are done already")
        metadata = identity | {"heads": [[head.name, head.stop - head.start] for head in heads]}
        metadata["classes"] = [name for head in heads for name in head.classes_of(package.classes)]
        work = Work(
            files=None,
            out=out,
            metadata=metadata,
            contract=package.contract,
            protocol=resolve_protocol(config.protocol, config.views),
            top_k=config.top_k,
            head=config.head,
            max_frames=config.max_frames,
            windows=config.windows,
            threads=1,
        )
        started = time.monotonic()
        statuses = _run(config, state, work, files=files, progress=progress)
    return BatchReport(
        out=out,
        videos=state.num_videos(),
        done_before=before,
        statuses=statuses,
        seconds=time.monotonic() - started,
    )


def _actors_expected(config: PredictConfig) -> int:
    """Estimated number of actors, before a cluster is joined."""
    return config.num_actors or (len(os.sched_getaffinity(0)) if cluster_address() is None else _ACTORS_OF_A_CLUSTER)


def _identity(config: PredictConfig, package: ModelPackage, files: dict[str, bytes]) -> dict[str, Any]:
    return prediction_job.identity_of(
        model=config.model,
        model_sha256=hashlib.sha256(files["model.safetensors"]).hexdigest(),
        classes=package.classes,
        head_classes=package.model.head_classes,
        flow_contract=package.contract.hash,
        settings={"top_k": config.top_k, "head": config.head}
        | ({"max_frames": config.max_frames} if config.windows is None else {"windows": list(config.windows)})
        | {"protocol": asdict(resolve_protocol(config.protocol, config.views))},
    )


def _run(
    config: PredictConfig, state: JobState, work: Work, *, files: dict[str, bytes], progress: Progress | None
) -> dict[str, int]:
    """Do the unfinished parts; returns status -> number of rows."""
    parts, total = state.open_parts, state.num_videos()
    statuses: Counter[str] = Counter()
    if not parts:
        return {}
    require_cluster()
    done = state.num_videos(finished=True)
    with ray_session():
        import ray

        work = replace(work, files=ray.put(files))
        try:
            for counted in _results(parts, work, num_actors=config.num_actors):
                done += counted["videos"]
                statuses.update(counted["statuses"])
                if progress is not None:
                    progress(done, total)
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            raise own from None
    return dict(statuses)


def _results(parts: Sequence[Part], work: Work, *, num_actors: int | None) -> Iterator[dict[str, Any]]:
    """The counts of each part, as parts finish."""
    import ray
    import ray.data

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    share = {"GPU": 1.0, "CPU": 1.0} if gpus else {"CPU": 1.0}
    require_room([share], what="an actor that scores videos", way_out="choose a cluster with a CPU or GPU")
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"name": part.name, "uris": json.dumps(part.uris)} for part in parts]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_ITEMS))
    # Windows are scored while their video is decoded, so the actor has the CPU too.
    staged = gpus > 0 and work.windows is None
    if staged:
        dataset = dataset.map_batches(prepare_part, fn_kwargs={"work": work}, batch_size=1, num_cpus=1)
    dataset = dataset.map_batches(
        PartScorer,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(num_actors or gpus or cpus, len(parts))),
        num_cpus=0 if staged else 1,
        num_gpus=1 if gpus else 0,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["counted"])
