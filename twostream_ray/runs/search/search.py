"""State of a hyperparameter search: the next trial, the results, and the best model evaluated and registered."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from twostream_ray import storage, tracking
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import CheckpointError, ConfigError, StorageError, TrainingError
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.run_page import log_data, log_recipe, used_splits
from twostream_ray.runs.score.publish import Published, kept_publication, publish_run
from twostream_ray.runs.search.best_recipe import has_best_recipe, longer_command, write_best_recipe
from twostream_ray.runs.search.proposals import Proposer
from twostream_ray.runs.search.records import Spent, TrialRecord, TrialStore, best_of, seconds_left, trial_name
from twostream_ray.runs.search.report import BEST_SCORE, STATUS_TAG, SearchReport, read_report, write_report
from twostream_ray.runs.search.settings import TuneConfig, store_settings
from twostream_ray.runs.search.space import Space, TrialSettings
from twostream_ray.runs.search.trial import epochs_so_far, trial_report
from twostream_ray.runs.train.run import build_on_meta_device
from twostream_ray.runs.train.worker_group import by_epoch

_STORE_EVERY_S = 5.0

_log = logging.getLogger("twostream_ray")


class Search:
    """A running search and its stored state."""

    def __init__(self, config: TuneConfig, shard_set: ShardSet) -> None:
        self.config, self._shard_set = config, shard_set
        self.folder = SearchFolder.of(config)
        self.space = Space(config.search.space, base=config)
        self._proposer = Proposer(self.space, config=config.search, seed=config.seed, check=self._parameters)
        self.trials = TrialStore(config, folder=self.folder)
        self._waiting = [record for record in self.trials.records.values() if record.status == "running"]
        for record in self.trials.records.values():
            self._proposer.restore(record.number, record.settings, record.parameters)
            if record.status != "running":
                self._proposer.observe(record.number, record.score if record.status != "failed" else None)
        self._space_exhausted = False
        self.gpus_per_trial = 0.0
        """GPUs that a trial holds."""
        self.closed_output: BrokenPipeError | None = None
        """The reader of the progress has closed it: the search stops, and the same command resumes it."""
        self._started_at = self._stored_at = time.monotonic()
        self._seconds_before = self.trials.seconds
        self.mlflow_run = tracking.RunHandle(
            tracking_uri=config.tracking.resolved_uri(), run_uri=self.folder.uri, experiment_id="", run_id=""
        )

    def read_earlier_report(self) -> SearchReport | None:
        """The report of an earlier call, if there is nothing left to do."""
        if (stored := read_report(self.folder)) is None:
            return None
        self.gpus_per_trial, self._space_exhausted = stored["gpus_per_trial"], stored["used_up"]
        if (ended := self._ended()) is None:
            return None
        return self._report(ended, published=None, verdict=stored["verdict"], done_before=True)

    def propose_first(self) -> None:
        """Propose the first trial, so that a space without a valid one is refused before anything starts."""
        if not self._waiting and (first := self.next()) is not None:
            self._waiting.append(first)

    def start(self) -> None:
        """Store the search's settings and manifest, and start or resume its MLflow run."""
        anew = self.trials.is_another or self.folder.stored_hash() not in (None, self._shard_set.hash)
        self.folder.keep_data(self._shard_set)
        store_settings(self.config, folder_uri=self.folder.uri)
        self.mlflow_run = tracking.start_run(
            self.config.tracking,
            run_name=self.config.name,
            run_uri=self.folder.uri,
            parameters=asdict(self.config),
            tags=tracking.lineage_tags(
                manifest_hash=self._shard_set.hash, flow_contract_hash=self._shard_set.contract.hash
            ),
            anew=anew,
        )
        splits = used_splits(self.config.data, self._shard_set)
        log_data(self.mlflow_run, self._shard_set, splits=splits, context="training")
        log_recipe(self.mlflow_run, self.config, verb="tune")

    def trials_left(self) -> int:
        """Trials to run at most: those that an earlier call left unfinished, and new ones."""
        new = 0 if self._space_exhausted else max(0, self.config.search.trials - len(self.trials.records))
        return len(self._waiting) + new

    def next(self) -> TrialRecord | None:
        """The trial to run next: one that an earlier call left unfinished, or a new one; None to end the search."""
        if self.out_of_budget() is not None:
            return None
        if self._waiting:
            return self._waiting.pop(0)
        if len(self.trials.records) >= self.config.search.trials:
            return None
        number = len(self.trials.records)
        proposal = self._proposer.propose(number)
        if proposal is None:
            self._space_exhausted = True
            return None
        record = TrialRecord(
            number=number, name=self.trial_name(number), settings=proposal.settings, parameters=proposal.parameters
        )
        self.trials.put(record)
        return record

    def out_of_budget(self) -> str | None:
        """Which budget is spent, in words; None if none is."""
        if time.monotonic() - self._stored_at > _STORE_EVERY_S:
            self.store_time()
        return self.spent().over(self.config.search)

    def spent(self) -> Spent:
        """The spent budget."""
        return self.trials.spent(gpus_per_trial=self.gpus_per_trial)

    def seconds_left(self) -> float | None:
        """Estimated seconds that the search will still run; None before an epoch has ended."""
        wanted = self.config.search.trials
        if self.space.finite:
            wanted = sum(1 for _ in islice(self.space.grid(), wanted))
        return seconds_left(
            list(self.trials.records.values()),
            self.spent(),
            config=self.config.search,
            trials=len(self.trials.records) if self._space_exhausted else wanted,
            epochs=int(self.space.largest("training.epochs")),
        )

    def store_time(self) -> None:
        """Store how long the search has run."""
        self._stored_at = time.monotonic()
        self.trials.store_seconds(self._seconds_before + self._stored_at - self._started_at)

    def end_trial(self, number: int, *, failure: str | None = None) -> None:
        """Record that a trial ended: finished, stopped by the scheduler, or failed for good."""
        record = self.trials.records[number]
        if failure is not None:
            record = replace(record, status="failed", reason=failure)
            self.finish_trial_run(record, status="FAILED", words=f"failed: {failure}")
        elif not storage.exists(self.folder.trial(record.name).report):
            record = replace(record, status="stopped early", reason=self._why_stopped(record))
            self.finish_trial_run(record, status="KILLED", words=f"stopped early {record.reason}")
        else:
            record = replace(record, status="finished", reason="")
            self.finish_trial_run(record, status=None, words="finished")
        self.trials.put(record)
        self._proposer.observe(number, None if failure is not None else record.score)

    def _why_stopped(self, record: TrialRecord) -> str:
        epochs = self._experiment(record.settings, record.number).training.epochs
        return f"by {self.config.search.scheduler} after {len(record.history)} of {epochs} epochs"

    def add_unreported_epochs(self) -> None:
        """Add epochs that trials trained after their last report to Tune, and log their scores to MLflow.

        A trial continues to train while Ray Tune decides to stop it: its checkpoints and its MLflow run have those
        epochs too, and the best checkpoint may be of one of them. Call it when no trial is running any more.
        """
        for record in list(self.trials.records.values()):
            history = self._trained(record)
            if len(history) > len(record.history):
                # Epochs reported to Tune keep their metrics.
                record = replace(record, history=[*record.history, *history[len(record.history) :]])
                if record.status == "stopped early":
                    record = replace(record, reason=self._why_stopped(record))
                    self.finish_trial_run(record, status=None, words=f"stopped early {record.reason}")
                self.trials.put(record)
            child = tracking.find_run(self.config.tracking, run_uri=self.folder.trial(record.name).uri)
            if child is not None and record.score is not None:
                # Epochs that MLflow already has are not changed.
                epochs = by_epoch(record.history)
                epochs[max(epochs)] |= {BEST_SCORE: record.score}
                tracking.log_history(child, epochs)

    def _trained(self, record: TrialRecord) -> list[dict[str, float]]:
        """Metrics of the epochs in a trial's own folder."""
        try:
            return epochs_so_far(self._experiment(record.settings, record.number))
        except (CheckpointError, StorageError, ConfigError) as error:
            _log.warning(
                "trial %s: only epochs reported to Ray Tune count, its folder is damaged: %s", record.name, error
            )
            return []

    def pause_unfinished(self) -> None:
        """Tag the trials that a spent budget has stopped as resumable."""
        self.store_time()
        for record in self._unfinished():
            self.finish_trial_run(record, status="KILLED", words=f"waits for a larger budget: {self._ended()}")

    def finish_trial_run(self, record: TrialRecord, *, status: Any, words: str) -> None:
        """Record in a trial's MLflow run how it ended, which a stopped trial cannot do itself."""
        child = tracking.find_run(self.config.tracking, run_uri=self.folder.trial(record.name).uri)
        if child is None:
            return
        # Tagged again: MLflow may have been unreachable when search and trial started.
        tracking.tag_run(child, {STATUS_TAG: words} | tracking.parent_tags(self.mlflow_run))
        if status is not None:
            tracking.finish_run(child, status, failure=record.reason if status == "FAILED" else "")

    def finish(self) -> SearchReport:
        """Evaluate the best trial on the validation split, register it, and write the report.

        A checkpoint that an earlier call registered is not registered again.
        """
        self.mlflow_run = tracking.deliver(self.mlflow_run)
        self.add_unreported_epochs()
        best = self._best()
        experiment = self._experiment(best.settings, best.number)
        experiment = replace(
            experiment, data=replace(experiment.data, test_split=str(self.config.data.split_to_validate))
        )
        trained = trial_report(experiment, best)
        kept, published = kept_publication(experiment, trained), None
        if kept is None:
            published = publish_run(experiment, trained, shard_set=self._shard_set)
        verdict = (published.verdict if published else kept and kept.verdict) or ""
        write_best_recipe(
            best,
            self._experiment(best.settings, best.number),
            config=self.config,
            shard_set=self._shard_set,
            folder=self.folder,
        )
        self.store_time()
        ended = self._ended() or "all that the space holds"
        report = self._report(ended, published=published, verdict=verdict, done_before=False)
        write_report(
            report,
            folder=self.folder,
            run=self.mlflow_run,
            split=str(self.config.data.split_to_validate),
            gpus_per_trial=self.gpus_per_trial,
            used_up=self._space_exhausted,
            logarithmic=self.space.logarithmic,
        )
        tracking.finish_run(self.mlflow_run)
        return report

    def _best(self) -> TrialRecord:
        records = list(self.trials.records.values())
        if (best := best_of(records)) is not None:
            return best
        failed = [record.reason for record in records if record.status == "failed"]
        raise TrainingError(
            f"{self.folder.what} has no trial that finished an epoch"
            + (f"; {len(failed)} failed, the last with: {failed[-1]}" if failed else "")
            + ": fix the cause and run the same command again"
        )

    def abort(self, status: Any, *, failure: str = "") -> None:
        """End the open MLflow runs with a status and the failure; the same command resumes the search."""
        self.store_time()
        for record in self._unfinished():
            self.finish_trial_run(record, status=status, words="interrupted")
        tracking.finish_run(self.mlflow_run, status, failure=failure)

    def trial_name(self, number: int) -> str:
        """Name of the trial's training run."""
        return trial_name(self.config.name, number)

    def _unfinished(self) -> list[TrialRecord]:
        return [record for record in self.trials.records.values() if record.status == "running"]

    def _ended(self) -> str | None:
        """Why there is nothing left to do, or None."""
        if (over := self.spent().over(self.config.search)) is not None:
            return over
        if self._unfinished():
            return None
        records = self.trials.records
        if len(records) >= self.config.search.trials:
            return f"{len(records)} of {self.config.search.trials} trials"
        return f"all {len(records)} trials that the space holds" if self._space_exhausted else None

    def _experiment(self, settings: TrialSettings, number: int) -> ExperimentConfig:
        return self.space.experiment(settings, name=self.trial_name(number), storage=self.folder.uri)

    def _parameters(self, settings: TrialSettings) -> int:
        """Number of a trial's parameters; raises ConfigError for settings that cannot be trained."""
        experiment = self._experiment(settings, 0)
        _, network = build_on_meta_device(experiment, self._shard_set)
        SnippetLoader(
            self._shard_set,
            config=experiment.data,
            passes=[],
            global_batch=experiment.training.global_batch,
            world_size=experiment.workers.most_workers(gpus=0) if experiment.workers.num_workers else 1,
        )
        return sum(parameter.numel() for parameter in network.parameters())

    def _report(self, ended: str, *, published: Published | None, verdict: str, done_before: bool) -> SearchReport:
        records = list(self.trials.records.values())
        epochs = [metrics for record in records for metrics in record.history]
        data, best = self.config.data, self._best()
        experiment = self._experiment(best.settings, best.number)
        return SearchReport(
            records=records,
            best=best,
            spent=self.spent(),
            ended=ended,
            decoded=round(sum(_decoded_clips(metrics) for metrics in epochs)),
            shown=len(epochs)
            * sum(len(self._shard_set.split(split)) for split in (data.split_to_train, str(data.split_to_validate))),
            refused=self._proposer.refused,
            published=published,
            verdict=verdict,
            model_name=self.config.tracking.registered_name(self._shard_set.data_set),
            done_before=done_before,
            longer=longer_command(best, experiment, folder=self.folder) if has_best_recipe(self.folder) else "",
        )


def _decoded_clips(metrics: dict[str, float]) -> float:
    return metrics.get("train_decoded_clips", 0.0) + metrics.get("val_decoded_clips", 0.0)
