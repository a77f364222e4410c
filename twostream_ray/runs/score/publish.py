"""Publication of trained runs: metrics and pictures to MLflow, a registered version, its promotion to champion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from twostream_ray import storage, tracking, visualize
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.model_package import ModelPackage
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import data_of, explained
from twostream_ray.runs.score.evaluate import EvaluateConfig, Evaluation, Progress, evaluate
from twostream_ray.runs.score.model_source import local_model
from twostream_ray.runs.train.run import TrainReport, require_splits, run_uri
from twostream_ray.settings.bounds import require_within
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import read_json, record
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Put the champion of a registered model back to the version before, or to a named one."""

    to: int | None = None
    """Version to make champion; by default the one that was so before; doing it again goes further back."""

    because: str = ""
    """Why, for the record: a tag of the version that is taken back."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry holds the model; `tracking.model_name` is the model's."""

    def __post_init__(self) -> None:
        require_within(self, to="[1, 2_147_483_647]")


_PUBLISHED = "published.json"


_PUBLISHED_SCHEMA = record(
    {"version": {"type": ["integer", "null"]}, "verdict": {"type": ["string", "null"]}},
    {"split": {"type": "string"}},
)


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
    uri = storage.join(run_uri(config), _PUBLISHED)
    if not storage.exists(uri):
        return False
    told = read_json(
        uri,
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
    what, folder = f"run {config.name!r}", run_uri(config)
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
    uri = storage.join(run_uri(config), "evaluation")
    evaluation = evaluate(
        EvaluateConfig(
            model=trained.checkpoint,
            shards=config.data.shards,
            split=config.data.test_split,
            out=uri,
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
        storage.write_bytes(storage.join(uri, "curves.png"), curves.read_bytes())
        confusion = Path(folder) / "confusion.png"
        confusion.write_bytes(storage.read_bytes(storage.join(uri, "confusion.png")))
        tracking.log_pictures(trained.run, {"curves": curves, "confusion": confusion})
    tracking.deliver(trained.run)
    published = Published(evaluation=evaluation, version=None, verdict=None)
    if config.tracking.register:
        published = _register(config, trained, evaluation, metrics=metrics)
    told = {"version": published.version, "verdict": published.verdict, "split": evaluation.split}
    storage.write_json(storage.join(run_uri(config), _PUBLISHED), told)
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
