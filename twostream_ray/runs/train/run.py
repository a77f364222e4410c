"""Fault-tolerant training run: settings checked first, one MLflow run across all restarts, a report at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from ray.train import UserCallback

from twostream_ray import storage, tracking
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError, ShardError, own_error
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.models.settings import PUBLISHED_WEIGHTS
from twostream_ray.redaction import one_line
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings, refuse_dry_run, with_absolute_uris
from twostream_ray.runs.run_folder import CHECKPOINT_NAME, RunFolder
from twostream_ray.runs.run_page import description, log_data, log_recipe, used_splits
from twostream_ray.runs.splits import warn_of_shared_clips
from twostream_ray.runs.train.events import Progress
from twostream_ray.runs.train.initial_weights import keep_initial_weights
from twostream_ray.runs.train.preflight import (
    SPLITS,
    fewest_workers,
    require_lanes,
    require_lasting_storage,
    require_splits,
    require_trainable,
)
from twostream_ray.runs.train.worker_group import by_epoch, train_with_worker_group
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import COUNT, list_of, read_json, record
from twostream_ray.storage.temporary_folders import sweep
from twostream_ray.training.checkpoint import METRICS
from twostream_ray.training.recipe import continued_schedule, lost_patience

_log = logging.getLogger(__name__)

_ID = {"type": "string", "pattern": r"^[A-Za-z0-9_-]{0,100}\Z"}
_REPORT_SCHEMA = record(
    {
        "name": {"type": "string"},
        "checkpoint": {"type": "string", "pattern": rf"(^|/){CHECKPOINT_NAME}\Z"},
        "history": list_of(METRICS),
        "parameters": COUNT,
        "seconds": {"type": "number", "minimum": 0},
        "run": record({"experiment_id": _ID, "run_id": _ID}),
        "done_before": {"type": "boolean"},
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Result of a training run."""

    name: str
    """Name of the run, the same across restarts."""
    checkpoint: str
    """URI of the checkpoint to use: the best on the validation split, or the last without one."""
    history: list[dict[str, float]]
    """Metrics of every epoch."""
    parameters: int
    """Number of the network's parameters."""
    seconds: float
    """Wall time of training, including restarts within this call."""
    run: tracking.RunHandle
    """The MLflow run."""
    done_before: bool
    """Whether an earlier call had finished the run, so that nothing was trained."""


def train(
    config: ExperimentConfig,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    callbacks: Sequence[UserCallback] = (),
    parent: tracking.RunHandle | None = None,
) -> TrainReport:
    """Train or resume the run `config.name`; setting `stop` makes it save a checkpoint and stop.

    For a search's trials: `callbacks` run on Ray Train's controller after an epoch is in the outbox; `parent` is the
    search's MLflow run, in which this one is nested and whose folder holds the manifest that all trials use.

    Raises:
        KeyboardInterrupt: it was stopped, or Ctrl-C pressed.
        ConfigError: settings contradict each other, or an earlier run of this name had other settings or data.
        StorageError: MLflow's SQLite file cannot be written, or the run's own folder.
        ShardError: the shards are missing or damaged, or lack a split.
        LeaseError: another process trains the run.
        TrainingError: the run failed more often than workers.max_failures allows.
    """
    if config.stages.enabled:
        raise ConfigError("stages.enabled makes three runs: train them with runs.score.publish.train_and_publish")
    config = with_absolute_uris(config)
    require_lasting_storage(config)
    refuse_dry_run(config)
    config.tracking.require_usable()
    sweep()
    folder = RunFolder.of(config)
    folder.refuse_foreign()
    config = folder.keeping_device_settings(config)
    if parent is not None:
        # The search holds the lease of its folder, and has checked its data.
        shard_set = _data_folder(folder, parent).stored_data(shards=config.data.shards)
        if shard_set is None:
            raise ShardError(f"search {parent.run_uri} has lost the manifest it started with: choose another --name")
        return _train(config, shard_set, progress, stop, callbacks, parent)
    shard_set = folder.data_of(config.data.shards)
    require_splits(config, shard_set, SPLITS)
    warn_of_shared_clips(config.data, shard_set)
    if (finished := _finished_before(config, folder)) is not None:
        return finished
    stop = stop or threading.Event()
    way_out = "wait for it or end it, or choose another --name"
    with lease.held(folder.uri, work=folder.what, way_out=way_out, when_lost=stop.set):
        return _train(config, shard_set, progress, stop, callbacks, None)


def _train(
    config: ExperimentConfig,
    shard_set: ShardSet,
    progress: Progress | None,
    stop: threading.Event | None,
    callbacks: Sequence[UserCallback],
    parent: tracking.RunHandle | None,
) -> TrainReport:
    """`train`, holding the lease of the run's folder."""
    folder = RunFolder.of(config)
    if (finished := _finished_before(config, folder)) is not None:
        return finished
    _reopen(config, folder)
    require_lanes(config, workers=fewest_workers(config))
    if parent is None:
        require_trainable(config, shard_set, folder=folder)
    package, network = build_on_meta_device(config, shard_set)
    initial = keep_initial_weights(config, folder, package=package, network=network)
    package = replace(package, lineage=package.lineage | ({} if initial is None else initial.lineage))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    handle = _begin(config, shard_set, folder, parameters=parameters, lineage=package.lineage, parent=parent)
    started = time.monotonic()
    try:
        # For a plain run the plan has checked them; a trial needs its MLflow run first, to record why it cannot start.
        if parent is not None and initial is None and not folder.has_checkpoint():
            require_fitting_weights(package)
        checkpoint, history = train_with_worker_group(
            config,
            package,
            data_folder=_data_folder(folder, parent),
            handle=handle,
            network=network,
            initial=initial,
            progress=progress,
            stop=stop,
            callbacks=callbacks,
        )
    except BaseException as error:
        if parent is None:
            _finish_failed(handle, error)
        if isinstance(error, ShardError):
            raise folder.explained(error, shard_set) from error
        raise
    # Adds the epochs that a killed driver did not record; those already recorded are kept.
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
    # Without the tracking URI, which may contain a password.
    ids = {"experiment_id": handle.experiment_id, "run_id": handle.run_id}
    storage.write_json(folder.report, asdict(report) | {"run": ids})
    return report


def _finish_failed(handle: tracking.RunHandle, error: BaseException) -> None:
    """End the MLflow run with the reason; not for trials, whose end the search records."""
    killed = isinstance(error, KeyboardInterrupt | BrokenPipeError)
    tracking.finish_run(handle, "KILLED" if killed else "FAILED", failure="" if killed else failure_of(error))


def _begin(
    config: ExperimentConfig,
    shard_set: ShardSet,
    folder: RunFolder,
    *,
    parameters: int,
    lineage: dict[str, str],
    parent: tracking.RunHandle | None,
) -> tracking.RunHandle:
    """Store the run's settings and manifest, and start or resume its MLflow run."""
    settings = fixed_settings(config)
    anew = folder.is_another(settings, shard_set)
    storage.write_json(folder.settings, settings)
    if parent is None:
        folder.keep_data(shard_set)
    handle = tracking.start_run(
        config.tracking,
        run_name=config.name,
        run_uri=folder.uri,
        parameters={name: value for name, value in asdict(config).items() if name != "dry_run"}
        | {"num_parameters": parameters, "num_classes": len(shard_set.classes)},
        tags=lineage | {tracking.DESCRIPTION: description(config, shard_set, parameters=parameters)},
        parent=parent,
        anew=anew,
    )
    log_data(handle, shard_set, splits=used_splits(config.data, shard_set), context="training")
    log_recipe(handle, config, verb="train")
    # MLflow's parameters cannot change, but the number of epochs may have grown since.
    tracking.tag_run(handle, {"twostream.training.epochs": str(config.training.epochs)})
    return handle


def prepare_initial_weights(config: ExperimentConfig, shard_set: ShardSet) -> None:
    """Fetch and check the weights that `config.init` names, if any, before a cluster is started.

    Raises:
        ConfigError, ContractMismatchError: they do not fit, or the run was started with other settings.
        RegistryError, StorageError, CheckpointError: they cannot be read, or are damaged.
        LeaseError: another process trains the run.
    """
    config = with_absolute_uris(config)
    folder = RunFolder.of(config)
    folder.refuse_foreign()
    config = folder.keeping_device_settings(config)
    folder.begun_with(fixed_settings(config))
    package, network = build_on_meta_device(config, shard_set)
    with lease.held(folder.uri, work=folder.what, way_out="wait for it or end it, or choose another --name"):
        keep_initial_weights(config, folder, package=package, network=network)


def failure_of(error: BaseException) -> str:
    """Why a run failed, as one line for its MLflow run."""
    own = own_error(error)
    return str(own) if own is not None else f"{type(error).__name__}: {one_line(error, longest=1000)}"


def _data_folder(folder: RunFolder, parent: tracking.RunHandle | None) -> RunFolder:
    """The folder with the manifest that a run started with: its own, or for a trial the search's."""
    return folder if parent is None else replace(folder, uri=parent.run_uri)


def build_on_meta_device(config: ExperimentConfig, shard_set: ShardSet) -> tuple[ModelPackage, Network]:
    """The model to train, its network on the meta device, so without memory for weights.

    Raises:
        ConfigError: the settings contradict each other, the shards or the crop size.
    """
    package = package_for(config, shard_set)
    with torch.device("meta"):
        network = package.build(pretrained=False)
        _refuse_small_crops(network, config)
    return package, network


def require_fitting_weights(package: ModelPackage) -> None:
    """Refuse weights files that do not fit the network, by loading them on the meta device.

    Raises:
        WeightsError, StorageError: they cannot be read, lack a layer, or have one of another shape.
    """
    model = package.model
    spatial, temporal = (
        replace(tower, weights=None) if tower.weights in PUBLISHED_WEIGHTS else tower
        for tower in (model.spatial, model.temporal)
    )
    video = replace(model.clip3d, weights=None) if model.clip3d.weights == "kinetics400" else model.clip3d
    if any(one.weights is not None for one in (spatial, temporal, video)):
        files_only = replace(model, spatial=spatial, temporal=temporal, clip3d=video)
        with torch.device("meta"):
            replace(package, model=files_only).build(pretrained=True)


def package_for(config: ExperimentConfig, shard_set: ShardSet) -> ModelPackage:
    """What the trained model has on disk besides its weights.

    Raises:
        ConfigError: model.head_classes differs from the number of classes of the shards' data sets.
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
        lineage=tracking.lineage_tags(
            manifest_hash=shard_set.hash,
            flow_contract_hash=shard_set.contract.hash,
            train_split=config.data.split_to_train,
        ),
    )


def _refuse_small_crops(network: Network, config: ExperimentConfig) -> None:
    """Run a sample through the network on the meta device, so that a wrong crop size fails before workers start."""
    sampling, size = config.data.sampling, config.data.transforms.crop_px
    try:
        network.eval()(
            torch.empty(1, sampling.num_snippets, 3, size, size),
            torch.empty(1, sampling.num_snippets, 2 * sampling.flow_length, size, size),
        )
    except (RuntimeError, AssertionError, ConfigError) as error:  # timm asserts the size of frames
        if config.model.architecture == "clip3d" and isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"data.transforms.crop_px={size} does not fit {' and '.join(config.model.backbones)} "
            f"({' '.join(str(error).split())[:300]}): the papers' towers take 224 px, timm's mostly do, vgg_small "
            "takes any size"
        ) from None


def _finished_before(config: ExperimentConfig, folder: RunFolder) -> TrainReport | None:
    """The report of this run if it is finished; refuses a run that was started with other settings.

    Raises:
        ConfigError: they differ, or a file of the run is damaged.
    """
    if not folder.begun_with(fixed_settings(config)) or (report := read_report(folder)) is None:
        return None
    if _needs_more_epochs(report, config):
        return None
    run = tracking.RunHandle(tracking_uri=config.tracking.resolved_uri(), run_uri=folder.uri, **report.pop("run"))
    # The folder may have been moved since.
    report["checkpoint"] = folder.checkpoint(report["checkpoint"].rpartition("/")[2])
    return TrainReport(**report | {"name": config.name, "run": tracking.deliver(run), "done_before": True})


def _needs_more_epochs(report: Mapping[str, Any], config: ExperimentConfig) -> bool:
    """Whether a finished run is to train more epochs, and early stopping would not end them at once."""
    history = report["history"]
    return len(history) < config.training.epochs and not lost_patience(history, config=config.training)


def _reopen(config: ExperimentConfig, folder: RunFolder) -> None:
    """Mark a finished run that gets more epochs as unfinished, and log how its learning rate continues."""
    if (report := read_report(folder)) is None:
        return
    done = len(report["history"])
    _log.warning(
        "%s was finished with %d epochs and is trained to %d: %s",
        *(folder.what, done, config.training.epochs, continued_schedule(done, config=config.training)),
    )
    for uri in (folder.published, folder.report):
        storage.delete(uri)


def read_report(folder: RunFolder) -> dict[str, Any] | None:
    """The report of the run in `folder`, as JSON types; None before its end.

    Raises:
        ConfigError: it is damaged.
    """
    if not storage.exists(folder.report):
        return None
    values = read_json(
        folder.report,
        _REPORT_SCHEMA,
        what="the report of a training run",
        way_out="delete it and run the same command again, which writes it from the checkpoints",
        error=ConfigError,
        metrics=True,
    )
    return dict(values)
