"""Ray Train around the training worker: the group of workers, its restarts, and what it tells while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from twostream_ray import storage, tracking
from twostream_ray.data.loading.pipeline import READING_CPUS
from twostream_ray.errors import ConfigError, TrainingError, own_error
from twostream_ray.model_package import ModelPackage
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import polled, ray_session
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.checkpoints import history_of, mend_snapshot
from twostream_ray.runs.train.mailbox import Mailbox
from twostream_ray.runs.train.process_group import process_group_config
from twostream_ray.runs.train.system_metrics import mean_of_workers, object_store
from twostream_ray.runs.train.worker import train_worker

Progress = Callable[[dict[str, Any]], None]
"""Called with events: {"kind": "begin", "workers", "epoch", "step"} when workers start or start again, {"kind": "step",
"epoch", "epochs", "step", "steps", "loss"}, {"kind": "epoch", **metrics}, and {"kind": "lost", "reason"} when workers
were lost."""

_RESIZE_LOOK_S = 60.0
"""How often a run with [MIN, MAX] workers looks whether the cluster has room for more."""
_SHRINK_AFTER_S = "30"
"""How long it waits for lost workers to come back before it goes on with fewer; Ray's own 60 s are for start-up."""


def fit(
    config: ExperimentConfig,
    package: ModelPackage,
    *,
    data_uri: str,
    handle: tracking.RunHandle,
    needs_rgb: bool,
    needs_flow: bool,
    progress: Progress | None,
    stop: threading.Event | None,
    callbacks: Sequence[UserCallback] = (),
) -> tuple[str, list[dict[str, float]]]:
    """Train with a group of workers; gives the checkpoint to use and the metrics of every epoch.

    `data_uri` is the folder where it is written down which data the run began with.

    Raises:
        ConfigError: there are more workers than lanes.
        TrainingError: the group failed more often than workers.max_failures allows, or a loss was not finite.
        KeyboardInterrupt: `stop` was set, and the run has kept what it reached.
    """
    system, path = storage.filesystem(storage.absolute(config.storage), patient=True)
    watched = watched_metric(config)
    mend_snapshot(storage.join(storage.absolute(config.storage), config.name), watched=watched)
    elastic = isinstance(config.workers.num_workers, tuple)
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _SHRINK_AFTER_S)
    with ray_session():
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = config.workers.most_workers(gpus=gpus)
        require_lanes(config, workers=workers)
        cpus = config.workers.cpus_per_worker or max(0.1, ray.cluster_resources().get("CPU", 1) / 2 / workers)
        require_room(
            [*worker_shares(config, cpus=cpus, gpus=gpus), {"CPU": READING_CPUS}],
            what=f"the workers of run {config.name!r}, and reading for them,",
            way_out="lower workers.num_workers or workers.cpus_per_worker, or choose a larger cluster",
            stop=stop,
        )
        # Beside the driver: on another node it could be lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        ended: dict[str, dict[str, Any]] = {}
        recorded = threading.Event()
        worker = train_worker

        def show() -> None:
            if stop is not None and stop.is_set():
                board.stop.remote()
            for event in ray.get(board.take.remote()):
                if event["kind"] == "recorded":
                    recorded.set()
                elif event["kind"] in ("failed", "stopped"):
                    ended[event["kind"]] = event
                elif progress is not None:
                    progress(event)

        def send() -> None:
            if recorded.is_set():
                recorded.clear()
                tracking.send(handle)

        def run(arguments: dict[str, Any]) -> None:
            worker(arguments)  # Ray Train cannot carry tensors back

        trainer = _Trainer(
            run,
            train_loop_config={
                # Workers record nothing, and a tracking URI may hold a password that Ray's pages would show.
                "config": replace(config, tracking=tracking.TrackingConfig()),
                "package": package,
                "data_uri": data_uri,
                "needs_rgb": needs_rgb,
                "needs_flow": needs_flow,
                "board": board,
            },
            torch_config=process_group_config(timeout_s=config.workers.timeout_s),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.workers.num_workers if elastic else workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})},
                **({"elastic_resize_monitor_interval_s": _RESIZE_LOOK_S} if elastic else {}),
            ),
            run_config=ray.train.RunConfig(
                name=config.name,
                storage_path=path,
                storage_filesystem=system,
                failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=config.workers.keep_checkpoints,
                    checkpoint_score_attribute=watched,
                    checkpoint_score_order="max",
                ),
                callbacks=[EpochRecorder(handle.run_uri, board, timeout_s=config.workers.timeout_s), *callbacks],
            ),
        )
        try:
            with polled(send, every_seconds=0.3), polled(show, every_seconds=0.3):
                result = trainer.fit()
        except Exception as error:
            failures = getattr(error, "worker_failures", {}).values()
            own = next(filter(None, map(own_error, failures)), own_error(error))
            raise own or TrainingError(_failure(config, error)) from error
        if "failed" in ended:
            raise TrainingError(f"run {config.name!r}: {ended['failed']['message']}")
        if "stopped" in ended:
            raise KeyboardInterrupt
        best = result.get_best_checkpoint(watched, "max")
        if best is None:
            raise TrainingError(f"run {config.name!r} ended without a checkpoint: look at Ray's logs")
        scheme = "s3://" if storage.is_s3(config.storage) else ""
        return f"{scheme}{best.path}", history_of(f"{scheme}{result.checkpoint.path}")


def watched_metric(config: ExperimentConfig) -> str:
    """The metric whose highest value tells the checkpoint to use."""
    return "val_top1" if config.data.validation_split is not None else "epoch"


def require_lanes(config: ExperimentConfig, *, workers: int) -> None:
    """Refuse more workers than lanes, and batches that lanes cannot share, before anything starts.

    Raises:
        ConfigError: names both numbers and the settings.
    """
    lanes, batch = config.data.lanes, config.training.global_batch
    if workers > lanes:
        raise ConfigError(
            f"{workers} workers want at least as many data.lanes, got {lanes}: raise data.lanes to a divisor of "
            f"training.global_batch ({batch}), or set workers.num_workers to at most {lanes}"
        )
    if batch % lanes:
        raise ConfigError(f"training.global_batch must be a multiple of data.lanes ({lanes}), got {batch}")


def worker_shares(config: ExperimentConfig, *, cpus: float, gpus: int) -> list[dict[str, float]]:
    """What each of the workers that a training cannot do without takes of a cluster with so many GPUs."""
    many = config.workers.num_workers
    least = min(many) if isinstance(many, tuple) else config.workers.most_workers(gpus=gpus)
    return [{"CPU": cpus, **({"GPU": 1.0} if gpus else {})}] * least


def by_epoch(history: Sequence[dict[str, float]]) -> dict[int, dict[str, float]]:
    """The metrics of epochs under their numbers."""
    return {
        int(metrics["epoch"]): {name: value for name, value in metrics.items() if name != "epoch"}
        for metrics in history
    }


def _failure(config: ExperimentConfig, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"run {config.name!r} failed after {config.workers.max_failures} restarts ({(lines or [repr(error)])[-1][:300]}"
        "); mend the cause and run the same command again to go on from the last checkpoint"
    )


class _Trainer(TorchTrainer):
    """Ray's trainer, except for three habits.

    Ctrl-C stays a KeyboardInterrupt: Ray would end the process with exit code 1. No actor hands out parts of datasets
    that nobody passed: its process would import Ray Data whenever workers start, beside them. And workers are not asked
    to leave their process group before they are killed: one that is lost or hangs would be waited for.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [
            _SetUp(self.backend_config) if isinstance(each, BackendSetupCallback) else each
            for each in super()._create_default_callbacks()
            if not isinstance(each, DatasetsCallback)
        ]

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _SetUp(BackendSetupCallback):
    """Makes the process group of the workers; it goes with them."""

    def before_execution_group_shutdown(self, execution_group: Any) -> None:
        pass


class EpochRecorder(UserCallback):
    """Writes every epoch down once, from the controller, whatever worker dies; tells of workers that were lost.

    The driver sends it to MLflow, which takes seconds to import and may be slow: new workers would wait for it.
    """

    def __init__(self, uri: str, board: Any, *, timeout_s: float) -> None:
        self._place, self._board, self._timeout_s = uri, board, timeout_s

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Ray Train's hook: every worker has reported."""
        if "step" not in metrics[0]:
            values = metrics[0] | mean_of_workers(metrics) | object_store()
            tracking.write_history(self._place, by_epoch([values]))
            self._board.post.remote({"kind": "recorded"})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Ray Train's hook: workers were lost."""
        self._board.post.remote({"kind": "lost", "reason": loss_reason(worker_exceptions, timeout_s=self._timeout_s)})


def loss_reason(errors: dict[int, Exception], *, timeout_s: float) -> str:
    """What became of a group of workers, in a few words, from the errors by rank.

    When one worker dies, those that were waiting for it fail too; when one hangs, only they fail.
    """
    died = sorted(rank for rank, error in errors.items() if "Died" in type(error).__name__ or "died" in str(error))
    if died:
        return f"worker {' and '.join(map(str, died))} died"
    if any("imed out" in str(error) for error in errors.values()):
        waited = ", ".join(map(str, sorted(errors)))
        return f"a worker did not answer for {timeout_s:g} s; worker {waited} had waited for it"
    rank, error = min(errors.items(), key=lambda item: item[0])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"worker {rank}: {(lines or [repr(error)])[-1][:200]}"
