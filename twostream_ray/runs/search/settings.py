"""Settings of `tune`: those of a training run, the search space, search algorithm, scheduler and budget."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.redaction import redact
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.settings.arguments import OtherSettings
from twostream_ray.settings.bounds import require_within
from twostream_ray.settings.names import require_name
from twostream_ray.settings.parser import from_arguments

_STORED_SETTINGS = "settings.json"

Searcher = Literal["tpe", "random", "grid"]
Objective = Literal["accuracy", "accuracy_and_parameters"]
Scheduler = Literal["asha", "median", "none"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search space, search algorithm, scheduler and budget."""

    space: dict[str, Any]
    """Dotted setting of a training -> a list of choices, {low, high, log}, or {choices, when}; several settings with
    commas between take the same value; `when` maps other settings to the values for which this one is searched."""

    searcher: Searcher = "tpe"
    """tpe (Optuna's tree-structured Parzen estimator), random, or grid (every point of a space without ranges)."""

    objective: Objective = "accuracy"
    """accuracy: top-1 on the validation split; accuracy_and_parameters: tpe also prefers small networks. In both cases
    the best trial is the most accurate one, the smaller of two equals."""

    scheduler: Scheduler = "asha"
    """asha: at 1, 3, 9, ... times grace_epochs, continue the best third so far (asynchronous successive halving);
    median: stop trials worse than the median of the others; none: train every trial to its end."""

    grace_epochs: int = 1
    """Epochs that every trial gets before it may be stopped."""

    reduction_factor: int = 3
    """asha continues one in this many trials; also the ratio between the epochs at which it compares."""

    trials: int = 30
    """Trials to propose, at most."""

    max_epochs: int | None = None
    """Epochs over all trials, at most; trials that run when a budget is spent stop, and resume later with a larger
    one."""

    max_hours: float | None = None
    """Hours that the search may run, including earlier calls of the same name."""

    max_gpu_hours: float | None = None
    """Hours of GPUs over all trials, at most."""

    concurrent_trials: int | None = None
    """Trials at a time; by default as many as the cluster's GPUs have room for, or one per CPU without GPUs."""

    share_samples_gb: float = 20.0
    """Disk space on each machine for decoded samples, in 1e9 bytes, so that a clip is decoded once per epoch and not
    once per trial; freed when the search ends. 0 decodes for every trial. Not used if data.sample_cache is set."""

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("searcher", self.searcher, get_args(Searcher)),
            ("objective", self.objective, get_args(Objective)),
            ("scheduler", self.scheduler, get_args(Scheduler)),
        ):
            if value not in valid:
                raise ConfigError(f"search.{name} must be one of {', '.join(valid)}, got {value!r}")
        require_within(
            self,
            "search.",
            grace_epochs="[1, 1_000_000]",
            reduction_factor="[2, 1_000]",
            trials="[1, 1_000_000]",
            max_epochs="[1, 1_000_000_000]",
            max_hours="(0, 1e6]",
            max_gpu_hours="(0, 1e9]",
            concurrent_trials="[1, 100_000]",
            share_samples_gb="[0, 1e9]",
        )
        if self.objective != "accuracy" and self.searcher != "tpe":
            raise ConfigError(
                f"search.objective={self.objective} needs search.searcher=tpe, got {self.searcher}: no other searcher "
                "uses results"
            )


@dataclass(frozen=True, kw_only=True)
class TuneConfig(ExperimentConfig):
    """Hyperparameter search: every trial is a resumable training, the best model is registered.

    The same command resumes it, and so does `--resume NAME`, with `--storage` where it is not the default; further
    options, such as a larger budget, override the stored ones.
    """

    search: SearchConfig
    """Search space, algorithm and budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.split_to_validate is None:
            raise ConfigError(
                "data.validation_split must name the split that trials are compared on, got none, and the test split "
                "must not select models: give --data.validation_split val, or --data.validation_fraction 0.1, which "
                "holds it out from the training split"
            )
        if self.stages.enabled:
            raise ConfigError("stages.enabled works with train, not with tune: a search's trials are one run each")
        if self.init is not None:
            raise ConfigError(
                f"init works with train only, got {self.init}: a search's trials start from the towers' own weights, "
                "model.spatial.weights and model.temporal.weights"
            )
        if self.data.validation_split == self.data.train_split:
            raise ConfigError(
                f"data.validation_split must be another split than data.train_split, got {self.data.train_split} twice"
            )


def store_settings(config: TuneConfig, *, folder_uri: str) -> None:
    """Store all settings of a search for `--resume`, except a tracking URI that contains a password."""
    values = asdict(config)
    uri = config.tracking.uri
    if uri is not None and redact(uri) != uri:
        values["tracking"]["uri"] = None
    storage.write_json(storage.join(folder_uri, _STORED_SETTINGS), values)


def settings_from(
    arguments: Sequence[str], *, positionals: Sequence[str] = (), elsewhere: OtherSettings = tuple
) -> TuneConfig:
    """Settings of `tune` from its command line, which may name a search to resume.

    Raises:
        ConfigError: settings are wrong, or there is no such search.
    """
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--resume")
    asked.add_argument("--storage", default="runs")
    search, others = asked.parse_known_args(list(arguments))
    if search.resume is None:
        return from_arguments(
            TuneConfig, arguments, prog="twostream tune", positionals=positionals, elsewhere=elsewhere
        )
    require_name(search.resume, setting="--resume")
    kept = storage.join(storage.absolute(search.storage), search.resume, _STORED_SETTINGS)
    if not storage.exists(kept):
        raise ConfigError(f"--resume wants the name of an earlier search, but {kept} does not exist: check --storage")
    return from_arguments(
        TuneConfig,
        ["--config", kept, *others, "--storage", search.storage],
        prog="twostream tune",
        positionals=positionals,
        elsewhere=elsewhere,
    )
