"""The run `train`: settings checked before anything starts, one MLflow run across restarts, a report at the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from ray.train import UserCallback

from twostream_ray import storage, tracking
from twostream_ray.data.shards import ShardSet, open_shards
from twostream_ray.errors import ConfigError
from twostream_ray.models.networks import Network
from twostream_ray.runs.config import ExperimentConfig, fixed_settings, with_absolute_places
from twostream_ray.runs.fit import Progress, by_epoch, fit
from twostream_ray.settings import refuse_changed
from twostream_ray.training.checkpoint import ModelPackage


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training run left behind."""

    name: str
    """The logical run."""
    checkpoint: str
    """Place of the checkpoint to use: the best on the validation split, or the last without one."""
    history: list[dict[str, float]]
    """Metrics of every epoch."""
    parameters: int
    """Weights that the network has."""
    seconds: float
    """Wall time of training, restarts of this call included."""
    run: tracking.RunHandle
    """The MLflow run."""
    done_before: bool
    """The run had been finished by an earlier call; nothing was trained."""


def run_place(config: ExperimentConfig) -> str:
    """Where a run keeps its checkpoints and reports."""
    return storage.join(storage.absolute(config.storage), config.name)


def train(
    config: ExperimentConfig,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    callbacks: Sequence[UserCallback] = (),
    parent: tracking.RunHandle | None = None,
) -> TrainReport:
    """Train, or go on with, the run `config.name`; setting `stop` makes it keep what it has reached and stop.

    A search hands in what its trials have beside: `callbacks` on Ray Train's controller, called after the run's journal
    has an epoch, and the MLflow run that this one is nested in.

    Raises:
        KeyboardInterrupt: it was stopped, or Ctrl-C pressed.
        ConfigError: settings do not go together, or an earlier run of this name had others.
        StorageError: MLflow's SQLite file cannot be written, or the run's own folder.
        ShardError: the shards are missing or damaged.
        TrainingError: the run failed more often than workers.max_failures allows.
    """
    config = with_absolute_places(config)
    config.tracking.require_usable()
    shard_set = open_shards(config.data.shards)
    for split in filter(None, (config.data.train_split, config.data.validation_split)):
        shard_set.split(split)
    package, network = blueprint(config, shard_set)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    place = run_place(config)
    finished = _earlier_run(config, place)
    if finished:
        run = tracking.RunHandle(uri=config.tracking.resolved_uri(), place=place, **finished["run"])
        return TrainReport(**finished | {"run": tracking.deliver(run), "done_before": True})
    storage.write_json(storage.join(place, "experiment.json"), fixed_settings(config))
    handle = tracking.start_run(
        config.tracking,
        run_name=config.name,
        place=place,
        parameters=asdict(config) | {"num_parameters": parameters, "num_classes": len(shard_set.classes)},
        tags=tracking.lineage_tags(manifest_hash=shard_set.hash, flow_contract_hash=shard_set.contract.hash),
        parent=parent,
    )
    started = time.monotonic()
    try:
        checkpoint, history = fit(
            config,
            package,
            handle=handle,
            needs_rgb=network.needs_rgb,
            needs_flow=network.needs_flow,
            progress=progress,
            stop=stop,
            callbacks=callbacks,
        )
    except BaseException as error:
        # A search says itself how its trials ended: it may have stopped this one.
        if parent is None:
            tracking.finish_run(handle, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    # Whatever a kill kept from being recorded; what is there already stays as it is.
    tracking.log_history(handle, by_epoch(history))
    handle = tracking.finish_run(handle)
    report = TrainReport(
        name=config.name,
        checkpoint=checkpoint,
        history=history,
        parameters=parameters,
        seconds=time.monotonic() - started,
        run=handle,
        done_before=False,
    )
    # Without the tracking URI, which may hold a password.
    ids = {"experiment_id": handle.experiment_id, "run_id": handle.run_id}
    storage.write_json(storage.join(place, "report.json"), asdict(report) | {"run": ids})
    return report


def blueprint(config: ExperimentConfig, shard_set: ShardSet) -> tuple[ModelPackage, Network]:
    """What a run will train, without memory behind its weights.

    Raises:
        ConfigError: the settings fit neither each other, nor the shards, nor the size of the crops.
    """
    package = package_for(config, shard_set)
    with torch.device("meta"):
        network = package.build(pretrained=False)
        _refuse_small_crops(network, config)
    return package, network


def package_for(config: ExperimentConfig, shard_set: ShardSet) -> ModelPackage:
    """What the trained model will carry besides its weights.

    Raises:
        ConfigError: the settings want other heads than the data sets of the shards have classes.
    """
    model = config.model
    if shard_set.head_classes and model.head_classes not in ((), shard_set.head_classes):
        raise ConfigError(
            f"model.head_classes is {list(model.head_classes)}, but the data sets of {shard_set.uri} have "
            f"{list(shard_set.head_classes)} classes: leave it out"
        )
    if shard_set.head_classes:
        model = replace(model, head_classes=shard_set.head_classes)
    return ModelPackage(
        model=model,
        classes=shard_set.classes,
        contract=shard_set.contract,
        sampling=config.data.sampling,
        transforms=config.data.transforms,
        lineage=tracking.lineage_tags(manifest_hash=shard_set.hash, flow_contract_hash=shard_set.contract.hash),
    )


def _refuse_small_crops(network: Network, config: ExperimentConfig) -> None:
    """Run a sample through the network's shapes, so that what cannot fit fails here and not on every worker."""
    sampling, size = config.data.sampling, config.data.transforms.crop_px
    try:
        network.eval()(
            torch.empty(1, sampling.num_snippets, 3, size, size),
            torch.empty(1, sampling.num_snippets, 2 * sampling.flow_length, size, size),
        )
    except (RuntimeError, ConfigError) as error:
        raise ConfigError(
            f"data.transforms.crop_px={size} is too small for {config.model.spatial.backbone} and "
            f"{config.model.temporal.backbone} ({' '.join(str(error).split())[:160]}): the papers' towers "
            "take 224 px, vgg_small takes any size"
        ) from None


def _earlier_run(config: ExperimentConfig, place: str) -> dict[str, Any] | None:
    """The report of a finished run of this name; refuses a run that was started with other settings."""
    settings = storage.join(place, "experiment.json")
    if not storage.exists(settings):
        return None
    before = json.loads(storage.read_text(settings))
    refuse_changed(before, fixed_settings(config), what=f"run {config.name!r}", place=place)
    report = storage.join(place, "report.json")
    return dict(json.loads(storage.read_text(report))) if storage.exists(report) else None
