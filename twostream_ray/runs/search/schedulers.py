"""Early-stopping schedulers of Ray Tune (ASHA, median stopping rule) that a resumed search can restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from twostream_ray.runs.search.records import TrialRecord
from twostream_ray.runs.search.settings import SearchConfig
from twostream_ray.runs.search.trial import EPOCHS_DONE, LAST, SCORE, as_result


def scheduler_for(config: SearchConfig, *, epochs: int, past: list[TrialRecord]) -> TrialScheduler:
    """The scheduler of a search whose trials have at most `epochs` epochs, restored with its `past` trials."""
    scheduler: Asha | Median
    if config.scheduler == "none" or config.grace_epochs >= epochs:
        return FIFOScheduler()
    if config.scheduler == "asha":
        scheduler = Asha(
            time_attr=EPOCHS_DONE,
            metric=SCORE,
            mode="max",
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
            max_t=epochs,
            stop_last_trials=False,
        )
    else:
        scheduler = Median(
            time_attr=EPOCHS_DONE,
            metric=SCORE,
            mode="max",
            grace_period=config.grace_epochs,
            # It would pause trials that it cannot compare yet, and Tune loses the progress of a paused trial.
            min_time_slice=float("inf"),
        )
    for record in past:
        scheduler.restore(record)
    return scheduler


class _NoStopAfterLastEpoch:
    """Mixin that does not stop a trial after its last epoch: it ends by itself, with its report."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        return TrialScheduler.CONTINUE if result[LAST] else action


@dataclass(frozen=True)
class _FinishedTrial:
    """A trial of an earlier call, as far as a scheduler needs it."""

    trial_id: str


class Asha(_NoStopAfterLastEpoch, AsyncHyperBandScheduler):
    """Asynchronous successive halving (ASHA)."""

    def restore(self, record: TrialRecord) -> None:
        """Add a finished trial, with which later ones are compared."""
        past = _FinishedTrial(record.name)
        self.on_trial_add(None, past)
        for result in _results(record):
            AsyncHyperBandScheduler.on_trial_result(self, None, past, result)


class Median(_NoStopAfterLastEpoch, MedianStoppingRule):
    """The median stopping rule."""

    def restore(self, record: TrialRecord) -> None:
        """Add a finished trial, with which later ones are compared."""
        past = _FinishedTrial(record.name)
        for result in _results(record):
            # Not on_trial_result: it decides, and fails on the results of a trial that it would have stopped before.
            self.on_trial_complete(None, past, result)


def _results(record: TrialRecord) -> list[dict[str, Any]]:
    """A trial's results as reported to Tune."""
    best, results = 0.0, []
    for metrics in record.history:
        best = max(best, metrics["val_top1"])
        results.append(as_result(metrics, best=best, last=False))
    return results
