"""Publication of a trained run: metrics and plots to MLflow, a registered model version, its promotion to champion."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twostream_ray import storage, tracking, visualize
from twostream_ray.data.protocols import VALIDATION
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.video.limits import VideoLimits
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.model_package import ModelPackage
from twostream_ray.model_source import local_model
from twostream_ray.redaction import redact
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.run_page import data_summary, description, network_summary
from twostream_ray.runs.score.challenge import promote_against_champion, require_same_classes
from twostream_ray.runs.score.evaluate import Evaluation, reserve_output, score_split, write_evaluation
from twostream_ray.runs.score.evaluation_run import log_evaluation
from twostream_ray.runs.score.serving_files import SERVED, serving_files
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.score.staged import check_stages, train_stages
from twostream_ray.runs.train.checkpoints import epoch_of
from twostream_ray.runs.train.events import Progress
from twostream_ray.runs.train.preflight import require_splits
from twostream_ray.runs.train.run import TrainReport, prepare_initial_weights, train
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import read_json, record
from twostream_ray.storage.temporary_folders import sweep, temporary_folder

_PUBLISHED_SCHEMA = record(
    {"version": {"type": ["integer", "null"]}, "verdict": {"type": ["string", "null"]}},
    {"split": {"type": "string"}, "checkpoint": {"type": "string"}, "registry": {"type": "string"}},
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run's evaluation in MLflow, and its version in the registry."""

    evaluation: Evaluation
    """Evaluation on the test split."""
    name: str | None
    """Name of the registered model; None if nothing was registered."""
    version: int | None
    """Version of the registered model; None if nothing was registered."""
    verdict: str | None
    """Whether it became champion, and why, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that is trained, evaluated and, depending on its settings, registered."""

    trained: TrainReport
    """Its training."""
    published: Published | None
    """Its evaluation; None if an earlier call evaluated it."""


@dataclass(frozen=True, kw_only=True)
class KeptPublication:
    """Registration of a run by an earlier call."""

    version: int | None
    verdict: str | None


def published_before(config: ExperimentConfig) -> bool:
    """Whether `publish_run` has finished for this run and split.

    An unreachable registry may have kept it from finishing, and the split may have been changed since.

    Raises:
        ConfigError: its record is damaged.
    """
    stored = _read_publication(config)
    return stored is not None and bool(stored.get("split", config.data.test_split) == config.data.test_split)


def kept_publication(config: ExperimentConfig, trained: TrainReport) -> KeptPublication | None:
    """The result of an earlier `publish_run` of the same checkpoint, split and registry; None without one.

    Raises:
        ConfigError: its record is damaged.
    """
    wanted = _publication_of(config, trained.checkpoint)
    stored = _read_publication(config)
    if stored is None or any(stored.get(name) != value for name, value in wanted.items()):
        return None
    return KeptPublication(version=stored["version"], verdict=stored["verdict"])


def _publication_of(config: ExperimentConfig, checkpoint: str) -> dict[str, str]:
    """Key of a publication: split, checkpoint and registry."""
    tracking_uri, name = redact(config.tracking.resolved_uri()), config.tracking.registered_name()
    return {
        "split": config.data.test_split,
        "checkpoint": checkpoint.rpartition("/")[2],
        "registry": f"{tracking_uri} {name}" if config.tracking.register else "",
    }


def _read_publication(config: ExperimentConfig) -> dict[str, Any] | None:
    uri = RunFolder.of(config).published
    if not storage.exists(uri):
        return None
    stored = read_json(
        uri,
        _PUBLISHED_SCHEMA,
        what="the record of a run's registration",
        way_out="delete it and run the same command again, which evaluates again",
        error=ConfigError,
    )
    return dict(stored)


def prepare_run(config: ExperimentConfig, shard_set: ShardSet) -> None:
    """Refuse networks that cannot be trained, before a cluster is started; fetch the weights that `init` names.

    Raises:
        ConfigError, ContractMismatchError, ShardError: settings contradict each other, the shards or `init`.
        RegistryError, StorageError, CheckpointError: the network that `init` names cannot be read.
        LeaseError: another process trains the run.
    """
    if not published_before(config):
        require_same_classes(config, shard_set)
    if config.stages.enabled:
        check_stages(config, shard_set)
    if config.init is not None:
        prepare_initial_weights(config, shard_set)


def train_and_publish(
    config: ExperimentConfig,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    when_trained: Callable[[], object] = lambda: None,
    evaluate_again: bool = False,
) -> FinishedRun:
    """Train or resume the run `config.name`, evaluate it on its test split, log it and register the model.

    Args:
        config: the experiment.
        progress: called with the events of training.
        stop: when set, training saves a checkpoint and stops.
        when_trained: called between training and evaluation, for instance to close a progress bar.
        evaluate_again: evaluate a run again that an earlier call has trained and published.

    Raises:
        KeyboardInterrupt: it was stopped, or Ctrl-C pressed.
        ConfigError: settings contradict each other, or an earlier run of this name had other settings or data.
        TrainingError: the run failed more often than workers.max_failures allows.
        ShardError, StorageError, CheckpointError: data or checkpoint cannot be read.
        LeaseError: another process trains or evaluates the run.
        RegistryError: the model cannot be registered.
    """
    if config.stages.enabled:

        def train_one(one: ExperimentConfig) -> FinishedRun:
            return train_and_publish(one, progress=progress, stop=stop, evaluate_again=evaluate_again)

        finished = train_stages(config, train_one)
        when_trained()
        return finished
    trained = train(config, progress=progress, stop=stop)
    when_trained()
    if trained.done_before and not evaluate_again and published_before(config):
        return FinishedRun(trained=trained, published=None)
    return FinishedRun(trained=trained, published=publish_run(config, trained))


def publish_run(config: ExperimentConfig, trained: TrainReport, *, shard_set: ShardSet | None = None) -> Published:
    """Evaluate a finished run on its test split, log metrics and plots to its MLflow run, and register the model.

    `shard_set` has to be given for a trial, whose folder does not hold the manifest it started with.

    Raises:
        RegistryError: the model cannot be registered.
        ShardError, StorageError, CheckpointError: data or checkpoint cannot be read.
        LeaseError: another process trains or evaluates the run.
    """
    folder = RunFolder.of(config)
    shard_set = shard_set or folder.data_of(config.data.shards)
    require_splits(config, shard_set, ("test_split",))
    with lease.held(folder.uri, work=folder.what, way_out="wait for it or end it"):
        try:
            return _publish_run(config, trained, shard_set, folder=folder)
        except ShardError as error:
            raise folder.explained(error, shard_set) from error


def _publish_run(
    config: ExperimentConfig, trained: TrainReport, shard_set: ShardSet, *, folder: RunFolder
) -> Published:
    uri = folder.evaluation
    evaluation_config = EvaluateConfig(
        model=trained.checkpoint,
        shards=config.data.shards,
        split=config.data.test_split,
        out=uri,
        workers=config.workers,
        tracking=config.tracking,
    )
    sweep()
    with (
        reserve_output(evaluation_config, shard_set),
        local_model(trained.checkpoint, config=config.tracking) as directory,
        temporary_folder() as scratch,
    ):
        evaluation = score_split(evaluation_config, shard_set, directory=directory)
        write_evaluation(evaluation, out=uri, files=Path(scratch))
        _log_curves(trained, uri=uri, folder=Path(scratch))
        log_evaluation(trained.run, evaluation, step=int(trained.history[-1]["epoch"]), files=Path(scratch))
        published = Published(evaluation=evaluation, name=None, version=None, verdict=None)
        if config.tracking.register:
            published = _register(
                config,
                trained,
                evaluation,
                directory=directory,
                shard_set=shard_set,
                evaluation_config=evaluation_config,
            )
    _describe(config, trained, shard_set, published)
    stored = {"version": published.version, "verdict": published.verdict}
    stored |= _publication_of(config, trained.checkpoint)
    storage.write_json(folder.published, stored)
    return published


def _log_curves(trained: TrainReport, *, uri: str, folder: Path) -> None:
    """Write learning curves to the MLflow run and to `uri`."""
    curves = folder / "curves.png"
    visualize.curves_picture(trained.history, curves, title=trained.name, kept_epoch=epoch_of(trained.checkpoint))
    storage.write_bytes(storage.join(uri, curves.name), curves.read_bytes())
    tracking.log_pictures(trained.run, {"curves": curves})


def _describe(config: ExperimentConfig, trained: TrainReport, shard_set: ShardSet, published: Published) -> None:
    """Write results, network and data into the description of the MLflow run."""
    report, name = published.evaluation.report, published.name
    results = [
        f"**Result.** Top-1 {report.top1:.2%} and mean class {report.mean_class:.2%} on split "
        f"`{published.evaluation.split}`, {report.coverage}; checkpoint `{trained.checkpoint}`."
    ]
    if name is not None:
        page = f"#/models/{quote(name)}/versions/{published.version}"
        results.append(f"**Registered.** [{name} {published.version}]({page}): {published.verdict}")
        model = shlex.quote(f"models:/{name}/{published.version}")
        results.append(f"**Use.** `twostream predict VIDEO --model {model}{config.tracking.uri_option()}`")
    text = description(config, shard_set, parameters=trained.parameters, results=results)
    tracking.tag_run(trained.run, {tracking.DESCRIPTION: text})
    tracking.deliver(trained.run)


def _register(
    config: ExperimentConfig,
    trained: TrainReport,
    evaluation: Evaluation,
    *,
    directory: Path,
    shard_set: ShardSet,
    evaluation_config: EvaluateConfig,
) -> Published:
    package, name = evaluation.package, config.tracking.registered_name(shard_set.data_set)
    version = tracking.register(
        trained.run,
        directory,
        entry=SERVED,
        code=serving_files(),
        name=name,
        measurement=evaluation.measurement(),
        protocol=_protocol(package) + _of_heads(evaluation),
        summary=network_summary(config, parameters=trained.parameters),
        classes=package.classes,
        data=data_summary(shard_set),
        flow_contract=package.contract.to_dict(),
        lineage=package.lineage,
        limits=asdict(VideoLimits()),
        libraries=package.model.libraries,
    )
    verdict = promote_against_champion(evaluation_config, shard_set, name=name, version=version, run=trained.run)
    return Published(evaluation=evaluation, name=name, version=version, verdict=verdict.reason)


def _protocol(package: ModelPackage) -> str:
    times, snippets = package.sampling.test_times, package.sampling.num_snippets
    views = f"{times} evenly spaced samples" if times > 1 else "1 sample from the middle"
    parts = f"{snippets} snippets" if snippets > 1 else "1 snippet"
    crop, short_side = package.transforms.crop_px, package.transforms.short_side_px
    resized = "" if short_side is None else f" of frames of {short_side} px"
    return f"{VALIDATION.name}: {views} of {parts} a clip, centre crop of {crop} px{resized}, scores averaged"


def _of_heads(evaluation: Evaluation) -> str:
    """The metrics of each data set, to be appended to a sentence; "" if there is only one data set."""
    return "".join(f"; of {head.name}: {head.to_text().replace('   ', ', ')}" for head in evaluation.report.heads)
