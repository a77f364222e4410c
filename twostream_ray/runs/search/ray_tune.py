"""Hyperparameter search on Ray Tune: concurrent, resumable trials, each a Ray Train run."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from twostream_ray import storage, tracking
from twostream_ray.data.loading.pipeline import READING_CPUS
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError
from twostream_ray.runs.cluster.private_cluster import environment
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session, require_cluster
from twostream_ray.runs.experiment import ExperimentConfig, refuse_dry_run, with_absolute_uris
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.score.challenge import require_same_classes
from twostream_ray.runs.search.records import Spent, TrialRecord
from twostream_ray.runs.search.report import SearchReport
from twostream_ray.runs.search.schedulers import scheduler_for
from twostream_ray.runs.search.search import Search
from twostream_ray.runs.search.settings import TuneConfig
from twostream_ray.runs.search.space import Space
from twostream_ray.runs.search.trial import FAILURE, METRICS, assign_resources, describe_error, run_trial
from twostream_ray.runs.splits import warn_of_shared_clips
from twostream_ray.runs.train.preflight import (
    require_lasting_storage,
    require_splits,
    require_trainable,
    searched_settings,
)
from twostream_ray.runs.train.ray_private import only_ray_variables_in_trials
from twostream_ray.runs.train.run import package_for, require_fitting_weights
from twostream_ray.runs.train.worker_group import worker_bundles
from twostream_ray.storage import lease
from twostream_ray.storage.temporary_folders import is_own_folder, own_folder_path, sweep

_TRIAL_CPUS = 0.01
"""CPUs of a trial's own process, which only waits for its training workers."""
_DASHBOARD_PATIENCE_SECONDS = 60.0
_LAST_REPORTS_SECONDS = 60.0

_log = logging.getLogger("twostream_ray")

Progress = Callable[[Sequence[TrialRecord], Spent, float | None], None]
"""Called after every change with all trials, the budget spent, and the estimated seconds left."""


def tune(config: TuneConfig, *, progress: Progress | None = None) -> SearchReport:
    """Start or resume the search `config.name`: unfinished trials first, from their checkpoints.

    Raises:
        ConfigError: the space is invalid, an earlier search of this name had other settings, or the Ray cluster has no
            dashboard.
        ShardError: the shards are missing or damaged.
        LeaseError: another process runs the search.
        TrainingError: no trial has finished an epoch.
        RegistryError: the best model cannot be registered.
    """
    require_cluster()
    config = _sharing_samples(with_absolute_uris(config))
    require_lasting_storage(config)
    refuse_dry_run(config)
    config.tracking.require_usable()
    sweep()
    folder = SearchFolder.of(config)
    folder.refuse_foreign()
    config = folder.keeping_device_settings(config)
    shard_set = folder.data_of(config.data.shards)
    require_splits(config, shard_set, ("train_split", "validation_split"))
    warn_of_shared_clips(config.data, shard_set)
    if (before := _finished_before(config, shard_set)) is not None:
        return before
    require_same_classes(config, shard_set)
    way_out = "wait for it or end it, or choose another --name"
    with lease.held(folder.uri, work=folder.what, way_out=way_out) as held:
        return _tune(config, shard_set, progress=progress, lost=lambda: held.lost_to is not None)


def _finished_before(config: TuneConfig, shard_set: ShardSet) -> SearchReport | None:
    """The report of a search that is already finished; None otherwise."""
    if not storage.exists(SearchFolder.of(config).report):
        return None
    return Search(config, shard_set).read_earlier_report()


def _tune(
    config: TuneConfig, shard_set: ShardSet, *, progress: Progress | None, lost: Callable[[], bool]
) -> SearchReport:
    """`tune`, holding the lease of the search's folder, until it is `lost`."""
    search = Search(config, shard_set)
    if (before := search.read_earlier_report()) is not None:
        return before
    require_trainable(config, shard_set, folder=search.folder)
    if not any(name.startswith("model.") for name in searched_settings(config)):
        require_fitting_weights(package_for(config, shard_set))
    search.propose_first()
    search.start()
    try:
        with ray_session(dashboard=True):
            _run(search, progress, lost=lost)
            report = search.finish()
            if config.search.share_samples_gb:
                _remove_on_every_node(_samples_folder(config))
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | BrokenPipeError)
        search.abort("KILLED" if killed else "FAILED", failure="" if killed else describe_error(error))
        raise
    return report


def _sharing_samples(config: TuneConfig) -> TuneConfig:
    """Set data.sample_cache to a folder on each machine, if trials are to share decoded samples."""
    data = config.data
    if not config.search.share_samples_gb or data.sample_cache is not None or data.decode_at not in ("auto", "worker"):
        return config
    limit_gb = config.search.share_samples_gb
    return replace(config, data=replace(data, sample_cache=_samples_folder(config), sample_cache_gb=limit_gb))


def _samples_folder(config: TuneConfig) -> str:
    """The shared samples' folder: unique to this search, and the same when it is resumed."""
    search = hashlib.sha256(SearchFolder.of(config).uri.encode()).hexdigest()[:12]
    return str(own_folder_path() / f"samples-{search}")


def _remove_on_every_node(uri: str) -> None:
    """Remove this user's directory at `uri` on each machine of the cluster."""

    @ray.remote(num_cpus=0)
    def remove() -> None:
        if is_own_folder(Path(uri)):
            shutil.rmtree(uri, ignore_errors=True)

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    on_each = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    begun = [remove.options(scheduling_strategy=strategy).remote() for strategy in on_each]
    # A machine that is lost meanwhile needs no cleaning.
    ray.wait(begun, num_returns=len(begun), timeout=60)


def _run(search: Search, progress: Progress | None, *, lost: Callable[[], bool]) -> None:
    """Train trials until all are done or a budget is spent; inside `ray_session`."""
    _require_dashboard()
    config = search.config
    cpus, gpus = ray.cluster_resources().get("CPU", 1.0), int(ray.cluster_resources().get("GPU", 0))
    wanted = config.workers.most_workers(gpus=gpus) if config.workers.num_workers else 1
    at_once = config.search.concurrent_trials or max(1, gpus // wanted if gpus else int(cpus))
    share = partial(assign_resources, cpus=cpus, gpus=gpus, trials_at_once=at_once)
    search.gpus_per_trial = float(share(config).workers.most_workers(gpus=gpus)) if gpus else 0.0
    per_trial = share(config)
    trial = [{"CPU": _TRIAL_CPUS}, *worker_bundles(per_trial, cpus=per_trial.workers.cpus_per_worker or 0.0, gpus=gpus)]
    require_room(
        [*trial * at_once, {"CPU": READING_CPUS}],
        what=f"{at_once} trials at once with their workers, and reading for them,",
        way_out=(
            "lower search.concurrent_trials, workers.num_workers or workers.cpus_per_worker, or choose a larger cluster"
        ),
    )
    left = search.trials_left()
    if not left:
        return
    system, path = storage.filesystem(search.folder.uri, patient=True)
    trainable = partial(_train_one, space=search.space, uri=search.folder.uri, share=share, parent=search.mlflow_run)
    with _quiet_tune():
        ray_tune.Tuner(
            ray_tune.with_resources(trainable, {"CPU": _TRIAL_CPUS}),
            tune_config=ray_tune.TuneConfig(
                search_alg=SearchAlgorithm(search),
                scheduler=scheduler_for(
                    config.search,
                    epochs=search.space.largest("training.epochs"),
                    past=[record for record in search.trials.records.values() if record.status != "running"],
                ),
                num_samples=left,
                max_concurrent_trials=at_once,
                trial_dirname_creator=lambda trial: f"{trial.config['name']}-{trial.trial_id}",
            ),
            run_config=ray_tune.RunConfig(
                # Tune's own state is never read back: a search is resumed from its stored trials.
                name="tune",
                storage_path=path,
                storage_filesystem=system,
                callbacks=[ResultRecorder(search, progress)],
                stop=BudgetStopper(search, lost),
                failure_config=ray_tune.FailureConfig(max_failures=config.workers.max_failures),
                verbose=0,
            ),
        ).fit()
    if search.closed_output is not None:
        raise search.closed_output
    if lost():
        raise KeyboardInterrupt  # the lease names the process that now has the search
    _wait_for_trials_to_end()
    search.pause_unfinished()


def _wait_for_trials_to_end() -> None:
    """Wait until no training of this job reports any more: Tune requests stopped trials to end, and does not wait."""
    from ray.util.state import list_actors

    context = ray.get_runtime_context()
    wanted = [("class_name", "=", "TrainController"), ("job_id", "=", context.get_job_id()), ("state", "!=", "DEAD")]
    deadline = time.monotonic() + _LAST_REPORTS_SECONDS
    while time.monotonic() < deadline:
        try:
            alive = list_actors(context.gcs_address, filters=wanted)
        except Exception as error:  # noqa: BLE001  (any error of Ray's dashboard)
            _log.warning("cannot list Ray's actors to see whether trials have ended (%s)", type(error).__name__)
            return
        if not alive:
            return
        time.sleep(0.2)
    _log.warning(
        "trials still run %g s after they were stopped: their last epochs may be missing", _LAST_REPORTS_SECONDS
    )


def _train_one(
    trial: dict[str, Any],
    *,
    space: Space,
    uri: str,
    share: Callable[[ExperimentConfig], ExperimentConfig],
    parent: tracking.RunHandle,
) -> None:
    """Tune's trainable: per_trial trial, in a process of its own."""
    experiment = space.experiment(json.loads(trial["settings"]), name=trial["name"], storage=uri)
    run_trial(share(experiment), parent=parent)


class SearchAlgorithm(Searcher):
    """Ray Tune search algorithm that suggests the trials that `Search` proposes."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        """The next trial's settings, or Searcher.FINISHED."""
        record = self._search.next()
        if record is None:
            return Searcher.FINISHED
        # The settings as per_trial string: Tune would flatten dotted names and lists.
        return {"number": record.number, "name": record.name, "settings": json.dumps(record.settings)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: `ResultRecorder` records results."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from its stored trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: never called."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles the algorithm, and never restores it."""
        return {}


class BudgetStopper(ray_tune.Stopper):
    """Ray Tune stopper that stops all trials when a budget is spent, or another process has taken over the search."""

    def __init__(self, search: Search, lost: Callable[[], bool]) -> None:
        self._search, self._lost = search, lost

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """False: no trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether a budget is spent, the lease is lost, or the output was closed."""
        gone = self._search.closed_output is not None
        return gone or self._lost() or self._search.out_of_budget() is not None

    def __getstate__(self) -> dict[str, Any]:
        return {}


class ResultRecorder(ray_tune.Callback):
    """Ray Tune callback that stores the results of trials as they arrive."""

    def __init__(self, search: Search, progress: Progress | None) -> None:
        self._search, self._progress = search, progress
        self._since: dict[int, float] = {}
        self._failures: dict[int, str] = {}
        self._show()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Ray Tune's hook: a trial's process starts."""
        self._since[trial.config["number"]] = time.monotonic()
        self._show()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        """Ray Tune's hook: a trial has finished an epoch, or reports why it failed."""
        number, now = trial.config["number"], time.monotonic()
        if FAILURE in result:
            self._failures[number] = result[FAILURE]
            return
        self._search.trials.end_epoch(number, result[METRICS], seconds=now - self._since.get(number, now))
        self._since[number] = now
        self._show()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Ray Tune's hook: a trial has ended."""
        number = trial.config["number"]
        self._search.end_trial(number, failure=self._failures.get(number))
        self._show()

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Ray Tune's hook: a trial's process died."""
        self._search.end_trial(trial.config["number"], failure=describe_error(trial.get_pickled_error()))
        self._show()

    def _show(self) -> None:
        if self._progress is not None:
            self._search.store_time()
            records = list(self._search.trials.records.values())
            try:
                self._progress(records, self._search.spent(), self._search.seconds_left())
            except BrokenPipeError as error:  # Tune would take it for a failure of the trial
                self._progress, self._search.closed_output = None, error

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _require_dashboard() -> None:
    """Refuse a cluster without a dashboard, on which a stopped trial's workers would never be released."""
    from ray.util.state import list_nodes

    # Without an address Ray would ask this machine's newest cluster.
    address = ray.get_runtime_context().gcs_address
    # A new cluster answers before its dashboard does.
    deadline = time.monotonic() + _DASHBOARD_PATIENCE_SECONDS
    while True:
        try:
            list_nodes(address, limit=1, timeout=10)
        except Exception as error:
            if time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise ConfigError(
                "tune needs a Ray cluster with a dashboard, to release the workers of stopped trials, but it does not "
                f"answer ({type(error).__name__}): start Ray with ray[default] and include_dashboard=True"
            ) from error
        return


_TUNE_ENVIRONMENT = {
    # Ctrl-C raises KeyboardInterrupt: stored trials are up to date at any moment.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that ends without a report must not end the search.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's own snapshots are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Tune's tables would be printed between this package's lines.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from handling Ctrl-C, writing logs and printing messages while the block runs."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with environment(_TUNE_ENVIRONMENT), only_ray_variables_in_trials():
            yield
    finally:
        logger.setLevel(level)
