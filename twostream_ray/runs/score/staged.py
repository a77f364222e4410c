"""Staged training: a run for each stream alone, then one of the fused network, initialised from their weights.

Each stage is an ordinary run with its own name and folder: finished ones are skipped, killed ones resume from their
last checkpoint.
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
    """Anything with the report of a training."""

    @property
    def trained(self) -> TrainReport:
        """The report of its training."""


_Run = TypeVar("_Run", bound=Trained)


def train_stages(config: ExperimentConfig, train_one: Callable[[ExperimentConfig], _Run]) -> _Run:
    """Train the stages of `config` one after the other with `train_one`; returns the fused network's run."""
    weights: dict[Stream, str] = {}
    streams: tuple[Stream, ...] = ("spatial", "temporal")
    for number, stream in enumerate(streams, start=1):
        one = stream_config(config, stream)
        _log.warning("stage %d of 3: the %s stream alone, run %r", number, stream, one.name)
        weights[stream] = storage.join(train_one(one).trained.checkpoint, MODEL_FILES[0])
    _log.warning("stage 3 of 3: the fused network from both, run %r", config.name)
    return train_one(fused_config(config, spatial=weights["spatial"], temporal=weights["temporal"]))


def stream_config(config: ExperimentConfig, stream: Stream) -> ExperimentConfig:
    """Settings of the run that trains one stream alone: its tower with its own classifier, not registered."""
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
    """Lines that describe the first two stages and introduce the third."""
    streams = [stream_config(config, stream) for stream in ("spatial", "temporal")]
    return [
        *(
            f"stage {number} of 3: run {one.name}, the {one.model.streams} stream alone, {one.training.epochs} epochs"
            for number, one in enumerate(streams, start=1)
        ),
        "stage 3 of 3 starts from their weights:",
    ]


def fused_config(config: ExperimentConfig, *, spatial: str, temporal: str) -> ExperimentConfig:
    """Settings of the run that trains the fused network, initialised from the streams' weights files."""
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
    """Check the networks of all stages before the first one is trained for hours.

    Raises:
        ConfigError: a stage's settings contradict each other, the shards or the crop size.
    """
    for one in (stream_config(config, "spatial"), stream_config(config, "temporal"), config):
        build_on_meta_device(one, shard_set)
