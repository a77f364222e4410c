"""Exact evaluation on a split: every clip scored once by some worker; pictures and registration behind it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage, visualize
from twostream_ray.data.flow import require_same_contract
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import READING_CPUS, SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ConfigError, TrainingError, own_error
from twostream_ray.evaluation.metrics import own_head_first
from twostream_ray.evaluation.report import Report, report_on
from twostream_ray.model_package import MODEL_FILES, ModelPackage, check_model, load_model
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session, require_cluster
from twostream_ray.runs.experiment import WorkersConfig
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.score.model_source import local_model
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import record
from twostream_ray.storage.temporary_folders import sweep, temporary_folder
from twostream_ray.tracking import TrackingConfig

_CLIPS_PER_STEP = 32
_FILES = ("report.json", "scores.npz", "confusion.png")
_REPORT_SCHEMA = record(
    {"top1": {"type": "number"}, "split": {"type": "string"}, "manifest_hash": {"type": "string"}}, others=True
)

Progress = Callable[[int, int], None]
"""Called with (clips scored, clips in all)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A trained model on a split of shards."""

    model: str
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    shards: str
    """Directory or s3:// prefix that `ingest` wrote; its flow must be of the model's kind."""

    split: str = "test"
    """Split to score."""

    out: str = "evaluation"
    """Directory for report.json, scores.npz and confusion.png."""

    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """The cluster's share; scores do not depend on it."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model came to on a split."""

    report: Report
    """Accuracies and confusion."""
    scores: NDArray[np.float32]
    """(n, K) scores of each clip, in the order of the shard set's index."""
    labels: NDArray[np.int64]
    """(n,) true classes."""
    clip_ids: tuple[str, ...]
    """(n,) names of the clips."""
    split: str
    """Split that was scored."""
    manifest_hash: str
    """sha256 of the data's manifest."""
    package: ModelPackage
    """The model's settings."""


def evaluate(
    config: EvaluateConfig, *, progress: Progress | None = None, shard_set: ShardSet | None = None
) -> Evaluation:
    """Score a split and write report.json, scores.npz and confusion.png to `config.out`.

    `shard_set` is given where `config.shards` may hold other clips by now than those that are to be scored.

    Raises:
        LeaseError: another process writes there.
        ContractMismatchError: the shards' flow is of another kind than the model's.
        ConfigError: the shards' classes are not the model's, or somebody else's files are there.
        ShardError, RegistryError, StorageError, CheckpointError: data or model cannot be had.
    """
    sweep()
    shard_set = shard_set or open_shards(config.shards)
    shard_set.split(config.split)
    refuse_foreign_files(storage.absolute(config.out), _FILES, schema=_REPORT_SCHEMA, verb="evaluate")
    require_cluster()
    with lease.held(config.out, work="evaluate", way_out="wait for it or end it, or choose another --out"):
        return _evaluate(config, shard_set, progress=progress)


def _evaluate(config: EvaluateConfig, shard_set: ShardSet, *, progress: Progress | None) -> Evaluation:
    with temporary_folder() as folder:
        directory = local_model(config.model, config=config.tracking, folder=Path(folder))
        package = check_model(directory)
        require_same_contract(
            package.contract, shard_set.contract, wanted_by=f"model {config.model}", found_in=config.shards
        )
        if package.classes != shard_set.classes:
            raise ConfigError(
                f"model {config.model} knows {len(package.classes)} classes ({', '.join(package.classes[:4])} ...), "
                f"{config.shards} has {len(shard_set.classes)} ({', '.join(shard_set.classes[:4])} ...): choose shards "
                "of the same classes"
            )
        files = {name: storage.read_bytes(str(directory / name)) for name in MODEL_FILES}
        scores = _score_all(config, shard_set, files=files, progress=progress)
    members = shard_set.split(config.split)
    missing = len(members) - len(scores)
    if missing:
        raise TrainingError(f"all {len(members)} clips of {config.split} were to be scored, {missing} were not")
    stacked = np.stack([scores[int(clip)] for clip in members])
    labels = shard_set.labels[members]
    ranked = own_head_first(stacked, labels, head_classes=package.model.head_classes or (len(package.classes),))
    ids = shard_set.index["clip_id"].to_pylist()
    evaluation = Evaluation(
        report=report_on(
            ranked,
            labels,
            classes=shard_set.classes,
            n_expected=len(members) + shard_set.quarantined.get(config.split, 0),
        ),
        scores=stacked,
        labels=labels,
        clip_ids=tuple(ids[clip] for clip in members),
        split=config.split,
        manifest_hash=shard_set.hash,
        package=package,
    )
    _write(evaluation, out=storage.absolute(config.out))
    return evaluation


def _score_all(
    config: EvaluateConfig, shard_set: ShardSet, *, files: dict[str, bytes], progress: Progress | None
) -> dict[int, NDArray[np.float32]]:
    import ray

    total = len(shard_set.split(config.split))
    with ray_session():
        gpus = int(ray.cluster_resources().get("GPU", 0))
        data = DataConfig(shards=config.shards)
        workers = min(config.workers.most_workers(gpus=gpus), data.lanes)
        cpus = config.workers.cpus_per_worker or max(0.1, ray.cluster_resources().get("CPU", 1) / 2 / workers)
        share = {"CPU": cpus, **({"GPU": 1.0} if gpus else {})}
        require_room(
            [share, {"CPU": READING_CPUS}],
            what="a worker that scores, and reading for it,",
            way_out="lower workers.cpus_per_worker, or choose a larger cluster",
        )
        task = ray.remote(_score_lanes).options(num_cpus=cpus, num_gpus=1 if gpus else 0)
        shared = ray.put((shard_set, files, config.split))
        pending = [task.remote(shared, rank, workers) for rank in range(workers)]
        scores: dict[int, NDArray[np.float32]] = {}
        try:
            while pending:
                done, pending = ray.wait(pending)
                for part in ray.get(done):
                    scores.update(part)
                if progress:
                    progress(len(scores), total)
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            raise own from None
    return scores


def _score_lanes(
    shared: tuple[ShardSet, dict[str, bytes], str], rank: int, world_size: int
) -> dict[int, NDArray[np.float32]]:
    """One worker's share of a split: clip position -> scores."""
    import torch

    from twostream_ray.training.loop import score_pass

    shard_set, files, split = shared
    torch.set_num_threads(1)
    with temporary_folder() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        network, package = load_model(Path(folder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    loader = SnippetLoader(
        shard_set,
        config=DataConfig(shards=shard_set.uri, sampling=package.sampling, transforms=package.transforms),
        passes=[Pass(split=split)],
        global_batch=_CLIPS_PER_STEP,
        rank=rank,
        world_size=world_size,
        want_rgb=network.needs_rgb,
        want_flow=network.needs_flow,
    )
    scores: dict[int, NDArray[np.float32]] = {}
    for _, batches in loader:
        scores |= score_pass(network, batches, device=device)[1]
    return scores


def _write(evaluation: Evaluation, *, out: str) -> None:
    values = evaluation.report.to_dict() | {"split": evaluation.split, "manifest_hash": evaluation.manifest_hash}
    storage.write_json(storage.join(out, _FILES[0]), values)
    table = io.BytesIO()
    np.savez_compressed(
        table,
        scores=evaluation.scores,
        labels=evaluation.labels,
        clip_ids=np.asarray(evaluation.clip_ids),
        classes=np.asarray(evaluation.report.classes),
        split=np.asarray(evaluation.split),
        num_expected=np.asarray(evaluation.report.n_expected),
        head_classes=np.asarray(evaluation.package.model.head_classes, dtype=np.int64),
    )
    storage.write_bytes(storage.join(out, _FILES[1]), table.getvalue())
    with temporary_folder() as folder:
        picture = Path(folder) / _FILES[2]
        visualize.confusion_picture(evaluation.report.confusion, evaluation.report.classes, picture)
        storage.write_bytes(storage.join(out, _FILES[2]), picture.read_bytes())
