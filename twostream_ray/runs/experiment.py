"""Experiment settings, composed of those of data, model, training, workers and tracking; which a resume may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import PUBLISHED_WEIGHTS, Clip3dConfig, ModelConfig, TowerConfig
from twostream_ray.runs.stages import StagesConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.settings.bounds import require_within
from twostream_ray.settings.names import require_name
from twostream_ray.settings.parser import with_missing
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import CHOSEN_BY_DEVICE, TrainingConfig

# Settings of `data` that change neither samples nor their order.
_MACHINE_SETTINGS = (
    "read_tasks",
    "decode_processes",
    "decode_at",
    "cache",
    "cache_gb",
    "sample_cache",
    "sample_cache_gb",
)


_CALL_SETTINGS = ("workers", "tracking", "storage", "dry_run", "stages")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Trains, evaluates and registers a network from shards."""

    name: str
    """Name of the run: the same name again resumes it."""

    data: DataConfig
    """Shards, splits and how samples are drawn."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation."""

    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Worker processes on the cluster."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    init: str | None = None
    """Trained network to initialise from, including its heads if the classes are the same: models:/NAME@champion, the
    folder of a finished run, or a checkpoint. By default from the towers' own weights."""

    stages: StagesConfig = field(default_factory=StagesConfig)
    """Training of each stream alone before the fused network."""

    storage: str = "runs"
    """Directory or s3:// prefix of checkpoints and reports, with a folder per run; on a cluster shared by all nodes."""

    seed: int = 0
    """Seed of initial weights, sample order and all random draws."""

    dry_run: bool = False
    """Check everything, print what would be trained, and end before Ray starts; for `train` and `tune`."""

    def __post_init__(self) -> None:
        require_name(self.name, setting="name")
        require_within(self, seed="[0, 9_223_372_036_854_775_807]")
        if self.stages.enabled and self.model.architecture in ("late", "clip3d"):
            raise ConfigError(
                "stages.enabled trains each stream alone and then the network that fuses them, so it wants "
                f"model.architecture fused, st_resnet or stfn, got {self.model.architecture}"
            )
        if self.stages.enabled and self.init is not None:
            raise ConfigError(
                f"stages.enabled initialises the network from its streams, init from {self.init}: leave one of them out"
            )
        if self.training.mixup_alpha is not None and self.training.global_batch < 2 * self.data.lanes:
            raise ConfigError(
                "training.mixup_alpha mixes each clip with another one of its lane in the same step: "
                f"training.global_batch must be at least 2 x data.lanes ({2 * self.data.lanes}), got "
                f"{self.training.global_batch}: use fewer lanes, or a larger batch"
            )
        if self.training.patience_epochs is not None and self.data.split_to_validate is None:
            raise ConfigError(
                "training.patience_epochs (early stopping) needs a validation split: set data.validation_split or "
                "data.validation_fraction, or leave it out"
            )


def refuse_dry_run(config: ExperimentConfig) -> None:
    """Refuse dry_run in verbs that do not support it.

    Raises:
        ConfigError: it is set.
    """
    if config.dry_run:
        raise ConfigError("dry_run works with `twostream train` and `twostream tune` only: leave it out")


_Experiment = TypeVar("_Experiment", bound=ExperimentConfig)
_Weighted = TypeVar("_Weighted", TowerConfig, Clip3dConfig)


def with_absolute_uris(config: _Experiment) -> _Experiment:
    """The settings with absolute paths, for processes with other working directories."""

    def weights_of(one: _Weighted) -> _Weighted:
        named = one.weights not in (None, *PUBLISHED_WEIGHTS)
        return replace(one, weights=storage.absolute(str(one.weights))) if named else one

    def directory(path: str | None) -> str | None:
        return None if path is None else storage.absolute(path)

    data, model, init = config.data, config.model, config.init
    return replace(
        config,
        init=init if init is None or init.startswith(("models:/", "runs:/")) else storage.absolute(init),
        data=replace(
            data,
            shards=storage.absolute(data.shards),
            cache=directory(data.cache),
            sample_cache=directory(data.sample_cache),
        ),
        model=replace(
            model,
            spatial=weights_of(model.spatial),
            temporal=weights_of(model.temporal),
            clip3d=weights_of(model.clip3d),
        ),
        tracking=replace(config.tracking, uri=config.tracking.resolved_uri()),
        storage=storage.absolute(config.storage),
    )


def keeping_device_settings(config: _Experiment, before: Mapping[str, Any]) -> _Experiment:
    """The settings with `auto` replaced by what a run stored `before`, so that it resumes as it started."""
    training = before.get("training")
    written = training if isinstance(training, Mapping) else {}
    kept = {
        name: written[name]
        for name in CHOSEN_BY_DEVICE
        if getattr(config.training, name) == "auto" and written.get(name, "auto") != "auto"
    }
    return replace(config, training=replace(config.training, **kept)) if kept else config


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    """Default settings by block, as JSON types."""
    blocks = {
        "data": asdict(DataConfig(shards="-")),
        "model": asdict(ModelConfig()),
        "training": asdict(TrainingConfig()),
    }
    return dict(json.loads(json.dumps(blocks)))


def fixed_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that a resumed run must share, as JSON types.

    Workers, tracking, storage and the split to evaluate on may change.
    """
    return without_free_settings(json.loads(json.dumps(asdict(config))))


def without_free_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run without those that may change on a resume.

    Earlier versions stored more of these, and lack later settings, whose defaults are what those versions did.
    """
    values = values | {
        block: with_missing(values[block], defaults)
        for block, defaults in _defaults().items()
        if isinstance(values.get(block), dict)
    }
    data = values.get("data", {})
    fixed = {name: value for name, value in values.items() if name not in _CALL_SETTINGS}
    # The data is identified by its manifest.
    free = {*_MACHINE_SETTINGS, "test_split", "shards"}
    if data.get("validation_fraction") is None:
        free.add("validation_seed")
    return fixed | {"data": {name: value for name, value in data.items() if name not in free}}
