"""Progress events of a training run: what its workers and Ray Train's controller post to the driver's mailbox.

In a light module: the mailbox's process reads events, and would spend seconds on importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersStarting:
    """The cluster has room for the workers; their processes are about to start."""

    num_workers: int
    """At most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersStarted:
    """A group of workers starts, from the first step or from the last checkpoint."""

    num_workers: int
    epoch: int
    """Epochs that are finished."""
    step: int
    """Steps of the next epoch that are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingChosen:
    """Where a group of workers has its samples decoded."""

    at: str
    """device, worker or stream."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSettingsChosen:
    """How a group of workers computes: the settings of training that suit its devices, where they are `auto`."""

    device: str
    """Name of a worker's device."""
    precision: str
    channels_last: bool
    compile: bool
    notes: tuple[str, ...] = ()
    """What a person should know of it, each a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEnded:
    """All workers have made a step."""

    epoch: int
    """Of this step, from 0."""
    num_epochs: int
    step: int
    """Steps of the epoch that are made, this one included."""
    num_steps: int
    """Steps of an epoch."""
    loss: float
    """Mean over the global batch, summed over towers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochEnded:
    """An epoch is trained, validated and in a checkpoint."""

    epoch: int
    """From 0."""
    num_epochs: int
    metrics: Mapping[str, float]
    """By name, as in the run's report; `epoch` is one of them."""
    remedy: str | None = None
    """Where workers waited for data: a sentence on what would change that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersLost:
    """Workers died or did not answer; the group starts again from the last checkpoint."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecorded:
    """An epoch is in the tracking outbox, to be delivered to MLflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFailed:
    """A loss was not finite; starting again would not help."""

    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStopped:
    """The run was requested to stop, and what it reached is in a checkpoint."""


ProgressEvent = (
    WorkersStarting | WorkersStarted | DeviceSettingsChosen | DecodingChosen | StepEnded | EpochEnded | WorkersLost
)
"""What a person sees of a run."""

Event = ProgressEvent | EpochRecorded | TrainingFailed | TrainingStopped

Progress = Callable[[ProgressEvent], None]
"""Called with a run's events in their order."""
