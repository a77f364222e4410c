"""Trial of a search: a training run inside a Ray Tune trial, to which every epoch is reported, also after a resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from twostream_ray import storage, tracking
from twostream_ray.errors import TrainingError, own_error
from twostream_ray.redaction import shortened
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.search.records import TrialRecord
from twostream_ray.runs.train.checkpoints import history_of, result_of
from twostream_ray.runs.train.run import TrainReport, read_report, train
from twostream_ray.runs.train.worker_group import watched_metric

EPOCHS_DONE = "epochs_done"
"""Time attribute of Tune's schedulers: 1 after the first epoch, continued after a resume."""
SCORE = "score"
"""Metric of Tune's schedulers: the best top-1 on the validation split so far, in [0, 1]."""
METRICS = "metrics"
"""The epoch's metrics within a result for Tune."""
LAST = "last"
"""Whether it was the trial's last epoch."""
FAILURE = "failure"
"""Why the trial failed; only in the result of a failed trial."""


def run_trial(config: ExperimentConfig, *, parent: tracking.RunHandle) -> None:
    """Train or resume a trial; runs in a Tune trial's process. `parent` is the search's MLflow run."""
    # A resumed training reports only new epochs. Tune fails when a trial reports nothing, and its schedulers would miss
    # the epochs at which they compare.
    epochs = config.training.epochs
    best = 0.0
    for metrics in epochs_so_far(config):
        best = max(best, metrics["val_top1"])
        tune.report(as_result(metrics, best=best, last=metrics["epoch"] + 1 >= epochs))
    try:
        train(config, callbacks=[ReportToTune(best, epochs=epochs)], parent=parent)
    except Exception as error:  # noqa: BLE001  (no error of a trial may end the others)
        # Reported as a result: if it were raised, Tune would retry what Ray Train has already retried.
        history = epochs_so_far(config)
        best = max((metrics["val_top1"] for metrics in history), default=0.0)
        tune.report({EPOCHS_DONE: len(history), SCORE: best, LAST: True, FAILURE: describe_error(error)})


def describe_error(error: BaseException | None) -> str:
    """Why a trial failed, in one line."""
    if error is None:
        return "unknown"
    own = own_error(error)
    lines = [line.strip() for line in str(own or error).splitlines() if line.strip()]
    return shortened(lines[0 if own else -1] if lines else repr(error), longest=300)


def as_result(metrics: dict[str, float], *, best: float, last: bool) -> dict[str, Any]:
    """An epoch as a result for Ray Tune."""
    return {EPOCHS_DONE: int(metrics["epoch"]) + 1, SCORE: best, LAST: last, METRICS: metrics}


class ReportToTune(TuneReportCallback):
    """Reports epochs to Tune, but not checkpoints within an epoch, which have no score."""

    def __init__(self, best: float, *, epochs: int) -> None:
        super().__init__()
        self._best, self._epochs = best, epochs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Ray Train's hook: every worker has reported."""
        if "step" in metrics[0]:
            return
        self._best = max(self._best, metrics[0]["val_top1"])
        last = metrics[0]["epoch"] + 1 >= self._epochs
        super().after_report(run_context, [as_result(metrics[0], best=self._best, last=last)], checkpoint)


def epochs_so_far(config: ExperimentConfig) -> list[dict[str, float]]:
    """Metrics of the epochs finished before a run's newest checkpoint."""
    folder = RunFolder.of(config)
    if (report := read_report(folder)) is not None:
        return list(report["history"])
    result = result_of(folder.uri, watched=watched_metric(config))
    if result is None or result.checkpoint is None:
        return []
    return history_of(f"{'s3://' if storage.is_s3(config.storage) else ''}{result.checkpoint.path}")


def trial_report(config: ExperimentConfig, record: TrialRecord) -> TrainReport:
    """The `TrainReport` of a trial, whether it finished or was stopped early.

    Raises:
        TrainingError: the trial's checkpoints are missing.
    """
    uri = RunFolder.of(config).uri
    result = result_of(uri, watched=watched_metric(config))
    best = None if result is None or not result.best_checkpoints else result.get_best_checkpoint("val_top1", "max")
    if best is None:
        raise TrainingError(f"the best checkpoint of trial {record.name} was wanted in {uri}, but it is missing")
    run = tracking.find_run(config.tracking, run_uri=uri)
    return TrainReport(
        name=record.name,
        checkpoint=f"s3://{best.path}" if storage.is_s3(config.storage) else best.path,
        history=record.history,
        parameters=record.parameters,
        seconds=record.seconds,
        run=run
        or tracking.RunHandle(tracking_uri=config.tracking.resolved_uri(), run_uri=uri, experiment_id="", run_id=""),
        done_before=False,
    )


def assign_resources(config: ExperimentConfig, *, cpus: float, gpus: int, trials_at_once: int) -> ExperimentConfig:
    """The experiment with its trial's share of the cluster: half of the CPUs for training, the rest for reading."""
    if config.workers.num_workers is None:
        config = replace(config, workers=replace(config.workers, num_workers=max(1, gpus // trials_at_once)))
    workers = config.workers.most_workers(gpus=gpus)
    # Each trial's own process needs a little as well.
    share = config.workers.cpus_per_worker or max(0.05, cpus / 2 / workers / trials_at_once - 0.02)
    return replace(config, workers=replace(config.workers, cpus_per_worker=round(share, 3)))
