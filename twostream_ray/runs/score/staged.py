"""Training in stages: a run for each stream alone, then one that fuses both and starts from their weights.

Each stage is an ordinary run in a folder of its own, which its name finds again: what is finished is skipped, what was
killed resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.model_package import MODEL_FILES
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.stages import StageConfig, StagesConfig
from twostream_ray.runs.train.run import TrainReport, build_on_meta_device

Stream = Literal["spatial", "temporal"]

_log = logging.getLogger(__name__)


class Trained(Protocol):
    """A run that was trained, by this call or an earlier one."""

    @property
    def trained(self) -> TrainReport:
        """Its training."""


_Run = TypeVar("_Run", bound=Trained)


def train_stages(config: ExperimentConfig, train_one: Callable[[ExperimentConfig], _Run]) -> _Run:
    """Train the stages of `config` by `train_one` after each other; returns the last, the fused network's run."""
    weights: dict[Stream, str] = {}
    streams: tuple[Stream, ...] = ("spatial", "temporal")
    for number, stream in enumerate(streams, start=1):
        one = stream_config(config, stream)
        _log.warning("stage %d of 3: the %s stream alone, run %r", number, stream, one.name)
        weights[stream] = storage.join(train_one(one).trained.checkpoint, MODEL_FILES[0])
    _log.warning("stage 3 of 3: the fused network from both, run %r", config.name)
    return train_one(fused_config(config, spatial=weights["spatial"], temporal=weights["temporal"]))


def stream_config(config: ExperimentConfig, stream: Stream) -> ExperimentConfig:
    """The run that trains one stream alone: its tower with its own classifier, evaluated, but not registered."""
    stage: StageConfig = getattr(config.stages, stream)
    training, sampling = config.training, config.data.sampling
    return replace(
        config,
        name=f"{config.name}-{stream}",
        data=replace(
            config.data,
            sampling=sampling if stage.num_snippets is None else replace(sampling, num_snippets=stage.num_snippets),
        ),
        model=replace(config.model, architecture="late", streams=stream, freeze_below_fusion=False),
        training=replace(
            training,
            epochs=training.epochs if stage.epochs is None else stage.epochs,
            learning_rate=training.learning_rate if stage.learning_rate is None else stage.learning_rate,
            step_epochs=training.step_epochs if stage.step_epochs is None else stage.step_epochs,
        ),
        tracking=replace(config.tracking, register=False),
        stages=StagesConfig(),
    )


def stage_lines(config: ExperimentConfig) -> list[str]:
    """What the first two stages train, a line each, and that the third is what follows."""
    streams = [stream_config(config, stream) for stream in ("spatial", "temporal")]
    return [
        *(
            f"stage {number} of 3: run {one.name}, the {one.model.streams} stream alone, {one.training.epochs} epochs"
            for number, one in enumerate(streams, start=1)
        ),
        "stage 3 of 3 starts from their weights:",
    ]


def fused_config(config: ExperimentConfig, *, spatial: str, temporal: str) -> ExperimentConfig:
    """The run that trains the fused network from the streams' weights, files of state dicts."""
    model = config.model
    return replace(
        config,
        model=replace(
            model,
            spatial=replace(model.spatial, weights=spatial),
            temporal=replace(model.temporal, weights=temporal),
        ),
        stages=StagesConfig(),
    )


def check_stages(config: ExperimentConfig, shard_set: ShardSet) -> None:
    """Refuse a network of any stage that the settings cannot give, before the first stage takes its hours.

    Raises:
        ConfigError: the settings of a stage fit neither each other, nor the shards, nor the size of the crops.
    """
    for one in (stream_config(config, "spatial"), stream_config(config, "temporal"), config):
        build_on_meta_device(one, shard_set)
