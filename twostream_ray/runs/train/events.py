"""Progress events of a training run: what its workers and Ray Train's controller post to the driver's mailbox.

This module imports no torch: the mailbox's process unpickles events, and importing torch takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersStarting:
    """The cluster has room for the workers; their processes are about to start."""

    num_workers: int
    """The most that the group may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersStarted:
    """A group of workers starts, from the first step or from the last checkpoint."""

    num_workers: int
    epoch: int
    """Finished epochs."""
    step: int
    """Finished steps of the next epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingChosen:
    """Where the samples of a group of workers are decoded."""

    at: str
    """device, worker or stream."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSettingsChosen:
    """How a group of workers computes: the training settings that `auto` resolved to on its devices."""

    device: str
    """Name of a worker's device."""
    precision: str
    channels_last: bool
    compile: bool
    notes: tuple[str, ...] = ()
    """Notes for the user, one sentence each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEnded:
    """All workers have finished a step."""

    epoch: int
    """Epoch of this step, from 0."""
    num_epochs: int
    step: int
    """Finished steps of the epoch, including this one."""
    num_steps: int
    """Steps of an epoch."""
    loss: float
    """Mean over the global batch, summed over towers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochEnded:
    """An epoch has been trained, validated and saved as a checkpoint."""

    epoch: int
    """From 0."""
    num_epochs: int
    metrics: Mapping[str, float]
    """By name, as in the run's report; `epoch` is one of them."""
    remedy: str | None = None
    """The setting to change if workers waited for data, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersLost:
    """Workers died or did not answer; the group restarts from the last checkpoint."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecorded:
    """An epoch has been written to the tracking outbox, to be delivered to MLflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFailed:
    """A loss was not finite; a restart would not help."""

    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStopped:
    """The run was requested to stop, and has saved a checkpoint."""


ProgressEvent = (
    WorkersStarting | WorkersStarted | DeviceSettingsChosen | DecodingChosen | StepEnded | EpochEnded | WorkersLost
)
"""Events that are shown to the user."""

Event = ProgressEvent | EpochRecorded | TrainingFailed | TrainingStopped

Progress = Callable[[ProgressEvent], None]
"""Called with a run's events in order."""
