"""Exact evaluation on a split: every clip scored once by some worker; pictures and registration behind it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostream_ray import lease, storage, tracking, visualize
from twostream_ray.data.flow import require_same_contract
from twostream_ray.data.lanes import Pass
from twostream_ray.data.pipeline import READING_CPUS, SnippetLoader
from twostream_ray.data.settings import DataConfig
from twostream_ray.data.shards import ShardSet, open_shards
from twostream_ray.documents import read_json, record
from twostream_ray.errors import ConfigError, ShardError, StorageError, TrainingError, own_error
from twostream_ray.evaluation import Report, own_head_first, report_on
from twostream_ray.runs.cluster_room import require_room
from twostream_ray.runs.config import EvaluateConfig, ExperimentConfig
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.run_folder import data_of, explained
from twostream_ray.runs.session import ray_session, require_cluster
from twostream_ray.runs.train import TrainReport, require_splits, run_place
from twostream_ray.temporary import sweep, temporary_folder
from twostream_ray.training.checkpoint import MODEL_FILES, ModelPackage, check_model, load_model

_CLIPS_PER_STEP = 32
_FILES = ("report.json", "scores.npz", "confusion.png")
_REPORT_SCHEMA = record(
    {"top1": {"type": "number"}, "split": {"type": "string"}, "manifest_hash": {"type": "string"}}, others=True
)
_PUBLISHED = "published.json"
_PUBLISHED_SCHEMA = record(
    {"version": {"type": ["integer", "null"]}, "verdict": {"type": ["string", "null"]}},
    {"split": {"type": "string"}},
)

Progress = Callable[[int, int], None]
"""Called with (clips scored, clips in all)."""


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


def local_model(model: str, *, config: tracking.TrackingConfig, folder: Path) -> Path:
    """The directory of a model's files, fetched into `folder` when it is a registry's or an object store's.

    Raises:
        RegistryError: the registry has no such model.
        StorageError: there is no such place.
    """
    if model.startswith(("models:/", "runs:/")):
        return tracking.pull(model, folder, config=config)
    place = storage.absolute(model)
    if not storage.is_s3(place):
        if not Path(place).is_dir():
            raise StorageError(
                f"a model was wanted at {model}, there is no such directory: give models:/NAME@champion, or a "
                "directory with model.safetensors and model.json"
            )
        return Path(place)
    for name in MODEL_FILES:
        (folder / name).write_bytes(storage.read_bytes(storage.join(place, name)))
    return folder


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


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run's evaluation in MLflow, and what became of it in the registry."""

    evaluation: Evaluation
    """The test split."""
    version: int | None
    """Version of the registered model; None where nothing was registered."""
    verdict: str | None
    """Whether it became champion, and why, in a sentence."""


def published_before(config: ExperimentConfig) -> bool:
    """Whether `evaluate_run` has come to its end for this run and split.

    A registry that was away may have kept it from it, and another split may have been named since.

    Raises:
        ConfigError: what tells so is damaged.
    """
    place = storage.join(run_place(config), _PUBLISHED)
    if not storage.exists(place):
        return False
    told = read_json(
        place,
        _PUBLISHED_SCHEMA,
        what="what became of a run in the registry",
        way_out="delete it and run the same command again, which evaluates once more",
        error=ConfigError,
    )
    return bool(told.get("split", config.data.test_split) == config.data.test_split)


def evaluate_run(
    config: ExperimentConfig,
    trained: TrainReport,
    *,
    progress: Progress | None = None,
    shard_set: ShardSet | None = None,
) -> Published:
    """Evaluate a finished run on its test split, put numbers and pictures into its MLflow run, register the model.

    `shard_set` is given where the run's own folder does not say which data it began with: that of a trial.

    Raises:
        RegistryError: the model cannot be registered.
        ShardError, StorageError, CheckpointError: data or checkpoint cannot be had.
        LeaseError: another process is at work on the run.
    """
    what, folder = f"run {config.name!r}", run_place(config)
    shard_set = shard_set or data_of(folder, shards=config.data.shards, what=what)
    require_splits(config, shard_set, ("test_split",))
    with lease.held(folder, work=what, way_out="wait for it or end it"):
        try:
            return _evaluate_run(config, trained, shard_set, progress=progress)
        except ShardError as error:
            raise explained(error, shard_set, what=what) from error


def _evaluate_run(
    config: ExperimentConfig, trained: TrainReport, shard_set: ShardSet, *, progress: Progress | None
) -> Published:
    place = storage.join(run_place(config), "evaluation")
    evaluation = evaluate(
        EvaluateConfig(
            model=trained.checkpoint,
            shards=config.data.shards,
            split=config.data.test_split,
            out=place,
            workers=config.workers,
            tracking=config.tracking,
        ),
        progress=progress,
        shard_set=shard_set,
    )
    report = evaluation.report
    metrics = {"top1": report.top1, "mean_class_accuracy": report.mean_class}
    if report.top5 is not None:
        metrics["top5"] = report.top5
    last = int(trained.history[-1]["epoch"])
    tracking.log_metrics(
        trained.run, {f"{evaluation.split}_{name}": value for name, value in metrics.items()}, step=last
    )
    with temporary_folder() as folder:
        curves = Path(folder) / "curves.png"
        visualize.curves_picture(trained.history, curves)
        storage.write_bytes(storage.join(place, "curves.png"), curves.read_bytes())
        confusion = Path(folder) / "confusion.png"
        confusion.write_bytes(storage.read_bytes(storage.join(place, "confusion.png")))
        tracking.log_pictures(trained.run, {"curves": curves, "confusion": confusion})
    tracking.deliver(trained.run)
    published = Published(evaluation=evaluation, version=None, verdict=None)
    if config.tracking.register:
        published = _register(config, trained, evaluation, metrics=metrics)
    told = {"version": published.version, "verdict": published.verdict, "split": evaluation.split}
    storage.write_json(storage.join(run_place(config), _PUBLISHED), told)
    return published


def _register(
    config: ExperimentConfig, trained: TrainReport, evaluation: Evaluation, *, metrics: dict[str, float]
) -> Published:
    package = evaluation.package
    with temporary_folder() as folder:
        measurement = tracking.Measurement(
            manifest_hash=evaluation.manifest_hash,
            split=evaluation.split,
            num_evaluated=evaluation.report.n_evaluated,
            num_clips=evaluation.report.n_expected,
            metrics=metrics,
        )
        version = tracking.register(
            trained.run,
            local_model(trained.checkpoint, config=config.tracking, folder=Path(folder)),
            name=config.tracking.model_name,
            measurement=measurement,
            protocol=_protocol(package),
            summary=_summary(config, parameters=trained.parameters),
            classes=package.classes,
            flow_contract=package.contract.to_dict(),
            lineage=package.lineage,
        )
    verdict = tracking.promote(
        config.tracking.model_name,
        version,
        metric="top1",
        manifest_hash=evaluation.manifest_hash,
        split=evaluation.split,
        config=config.tracking,
    )
    return Published(evaluation=evaluation, version=version, verdict=verdict.reason)


def _protocol(package: ModelPackage) -> str:
    times, snippets = package.sampling.test_times, package.sampling.num_snippets
    views = f"{times} evenly spaced samples" if times > 1 else "1 sample from the middle"
    parts = f"{snippets} snippets" if snippets > 1 else "1 snippet"
    return f"{views} of {parts} a clip, centre crop of {package.transforms.crop_px} px, scores averaged"


def _summary(config: ExperimentConfig, *, parameters: int) -> str:
    model = config.model
    if model.streams != "both":
        body = f"{model.streams} stream alone"
    elif model.architecture == "fused":
        where = ", ".join(model.fusion.layers)
        body = f"two streams, {model.fusion.method} fusion at {where}, {model.fusion.temporal} over time"
    else:
        body = f"two streams, {model.architecture}"
    return f"{body}; {model.spatial.backbone} and {model.temporal.backbone}; {parameters:,} parameters"
