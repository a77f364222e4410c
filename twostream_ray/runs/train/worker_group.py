"""Ray Train worker group (data-parallel): its resources, its restarts, and the progress that it posts."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import ray.train
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from twostream_ray import storage, tracking
from twostream_ray.data.loading.pipeline import READING_CPUS
from twostream_ray.errors import TrainingError, is_final, own_error
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.models.description import training_flops
from twostream_ray.redaction import shortened
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import polled, ray_session
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.train.checkpoints import history_of, mend_snapshot
from twostream_ray.runs.train.events import (
    DeviceSettingsChosen,
    EpochRecorded,
    Progress,
    ProgressEvent,
    TrainingFailed,
    TrainingStopped,
    WorkersLost,
    WorkersStarting,
)
from twostream_ray.runs.train.initial_weights import InitialWeights
from twostream_ray.runs.train.mailbox import Mailbox
from twostream_ray.runs.train.preflight import require_lanes
from twostream_ray.runs.train.ray_private import Trainer, process_group_config
from twostream_ray.runs.train.system_metrics import mean_of_workers, object_store
from twostream_ray.runs.train.worker import train_worker

_RESIZE_INTERVAL_S = 60.0
"""How often an elastic run ([MIN, MAX] workers) checks whether the cluster has room for more."""
_SHRINK_AFTER_S = "30"
"""How long it waits for lost workers before it resumes with fewer; Ray's default of 60 s is meant for start-up."""


def train_with_worker_group(
    config: ExperimentConfig,
    package: ModelPackage,
    *,
    data_folder: RunFolder,
    handle: tracking.RunHandle,
    network: Network,
    initial: InitialWeights | None,
    progress: Progress | None,
    stop: threading.Event | None,
    callbacks: Sequence[UserCallback] = (),
) -> tuple[str, list[dict[str, float]]]:
    """Train with a group of workers; returns the checkpoint to use and the metrics of every epoch.

    `data_folder` has the manifest and index that the run started with, `initial` the weights; `network` has none.

    Raises:
        ConfigError: there are more workers than lanes.
        TrainingError: the group failed more often than workers.max_failures allows, or a loss was not finite.
        KeyboardInterrupt: `stop` was set; the run's progress is saved in a checkpoint.
        BrokenPipeError: the reader of the progress closed it; the run's progress is saved in a checkpoint.
    """
    mend_snapshot(storage.join(storage.absolute(config.storage), config.name), watched=watched_metric(config))
    if isinstance(config.workers.num_workers, tuple):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _SHRINK_AFTER_S)
    with ray_session():
        scaling = _scaling(config, stop=stop)
        if progress is not None:
            many = scaling.num_workers
            progress(WorkersStarting(num_workers=max(many) if isinstance(many, tuple) else many))
        mailbox = _mailbox()
        worker = train_worker

        def run(arguments: dict[str, Any]) -> None:
            worker(arguments)  # Ray Train cannot carry tensors back

        trainer = Trainer(
            run,
            train_loop_config={
                # Workers record nothing, and a tracking URI may hold a password that Ray's pages would show.
                "config": replace(config, tracking=tracking.TrackingConfig()),
                "package": package,
                "data_folder": data_folder,
                "initial": initial,
                "needs_rgb": network.needs_rgb,
                "needs_flow": network.needs_flow,
                "flops_per_sample": flops_per_sample(network, config),
                "mailbox": mailbox,
            },
            torch_config=process_group_config(timeout_s=config.workers.timeout_s),
            scaling_config=scaling,
            run_config=_run_config(
                config,
                callbacks=[EpochRecorder(handle.run_uri, mailbox, timeout_s=config.workers.timeout_s), *callbacks],
            ),
        )
        with _events(mailbox, handle, progress=progress, stop=stop) as end:
            result = _fit(trainer, config)
        end.raise_early(config.name)
        return _checkpoint_and_history(result, config)


def _mailbox() -> Any:
    """A mailbox on the driver's node: on another one it could be lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


def flops_per_sample(network: Network, config: ExperimentConfig) -> float:
    """Floating-point operations of forward and backward of one training sample."""
    sampling = config.data.sampling
    return training_flops(
        network,
        flow_length=sampling.flow_length,
        num_snippets=sampling.num_snippets,
        size_px=config.data.transforms.crop_px,
    )


def _scaling(config: ExperimentConfig, *, stop: threading.Event | None) -> ray.train.ScalingConfig:
    """The number of workers and the resources of each, once the cluster has room for them."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = config.workers.most_workers(gpus=gpus)
    require_lanes(config, workers=workers)
    cpus = config.workers.cpus_per_worker or max(0.1, ray.cluster_resources().get("CPU", 1) / 2 / workers)
    require_room(
        [*worker_bundles(config, cpus=cpus, gpus=gpus), {"CPU": READING_CPUS}],
        what=f"the workers of run {config.name!r}, and reading for them,",
        way_out="lower workers.num_workers or workers.cpus_per_worker, or choose a larger cluster",
        stop=stop,
    )
    elastic = isinstance(config.workers.num_workers, tuple)
    return ray.train.ScalingConfig(
        num_workers=config.workers.num_workers if elastic else workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})},
        **({"elastic_resize_monitor_interval_s": _RESIZE_INTERVAL_S} if elastic else {}),
    )


def _run_config(config: ExperimentConfig, *, callbacks: Sequence[UserCallback]) -> ray.train.RunConfig:
    """Where checkpoints are stored, how many are kept, and how often the group may restart."""
    system, path = storage.filesystem(storage.absolute(config.storage), patient=True)
    return ray.train.RunConfig(
        name=config.name,
        storage_path=path,
        storage_filesystem=system,
        failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=config.workers.keep_checkpoints,
            checkpoint_score_attribute=watched_metric(config),
            checkpoint_score_order="max",
        ),
        callbacks=list(callbacks),
    )


def _fit(trainer: Trainer, config: ExperimentConfig) -> ray.train.Result:
    """Run Ray Train to its end; a TwoStreamError of a worker is raised as itself."""
    try:
        return trainer.fit()
    except Exception as error:
        failures = getattr(error, "worker_failures", {}).values()
        # Errors that a restart would not fix come first: the other workers may only have waited for that one.
        found = sorted(filter(None, map(own_error, failures)), key=lambda one: not is_final(one))
        own = next(iter(found), own_error(error))
        raise own or TrainingError(_failure(config, error)) from error


@dataclass(slots=True)
class _EarlyEnd:
    """Why workers ended before the last epoch, and what MLflow is still to be sent."""

    failure: str | None = None
    stopped: bool = False
    closed_output: BrokenPipeError | None = None
    """The reader of the progress (head, less) has closed it: the run saves a checkpoint and stops."""
    recorded: threading.Event = field(default_factory=threading.Event)
    """Set while an epoch waits to be delivered to MLflow."""
    tags: deque[dict[str, str]] = field(default_factory=deque)
    """Tags that the MLflow run is still to get."""

    def raise_early(self, run: str) -> None:
        """Raise what ended the workers before the last epoch, if anything did."""
        if self.closed_output is not None:
            raise self.closed_output
        if self.failure is not None:
            raise TrainingError(f"run {run!r}: {self.failure}")
        if self.stopped:
            raise KeyboardInterrupt


@contextmanager
def _events(
    mailbox: Any, handle: tracking.RunHandle, *, progress: Progress | None, stop: threading.Event | None
) -> Iterator[_EarlyEnd]:
    """Read the mailbox while the block runs: show progress, and deliver recorded epochs to MLflow."""
    end = _EarlyEnd()

    def show(event: ProgressEvent) -> None:
        if progress is None or end.closed_output is not None:
            return
        try:
            progress(event)
        except BrokenPipeError as error:
            end.closed_output = error

    def read() -> None:
        if end.closed_output is not None or (stop is not None and stop.is_set()):
            mailbox.stop.remote()
        for event in ray.get(mailbox.take.remote()):
            if isinstance(event, DeviceSettingsChosen):
                end.tags.append(device_tags(event))
            match event:
                case EpochRecorded():
                    end.recorded.set()
                case TrainingFailed():
                    end.failure = event.message
                case TrainingStopped():
                    end.stopped = True
                case _:
                    show(event)

    def deliver() -> None:
        if end.recorded.is_set():
            end.recorded.clear()
            tracking.send(handle)
        while end.tags:
            tracking.tag_run(handle, end.tags.popleft())

    # Two threads: MLflow may be slow, and progress must not wait for it.
    with polled(deliver, every_seconds=0.3), polled(read, every_seconds=0.3):
        yield end


def device_tags(event: DeviceSettingsChosen) -> dict[str, str]:
    """How a run computes, as MLflow tags: unlike parameters they can change, as the devices of a resumed run may."""
    return {
        "twostream.device": event.device,
        "twostream.training.precision": event.precision,
        "twostream.training.channels_last": str(event.channels_last),
        "twostream.training.compile": str(event.compile),
    }


def _checkpoint_and_history(result: ray.train.Result, config: ExperimentConfig) -> tuple[str, list[dict[str, float]]]:
    """The URI of the best checkpoint, and the metrics of every epoch."""
    best = result.get_best_checkpoint(watched_metric(config), "max")
    if best is None:
        raise TrainingError(f"run {config.name!r} ended without a checkpoint: look at Ray's logs")
    scheme = "s3://" if storage.is_s3(config.storage) else ""
    return f"{scheme}{best.path}", history_of(f"{scheme}{result.checkpoint.path}")


def watched_metric(config: ExperimentConfig) -> str:
    """The metric whose highest value selects the checkpoint to use."""
    return "val_top1" if config.data.split_to_validate is not None else "epoch"


def worker_bundles(config: ExperimentConfig, *, cpus: float, gpus: int) -> list[dict[str, float]]:
    """Resource bundles of the fewest workers that a training starts with, one per worker."""
    many = config.workers.num_workers
    least = min(many) if isinstance(many, tuple) else config.workers.most_workers(gpus=gpus)
    return [{"CPU": cpus, **({"GPU": 1.0} if gpus else {})}] * least


def by_epoch(history: Sequence[dict[str, float]]) -> dict[int, dict[str, float]]:
    """Metrics by epoch number."""
    return {
        int(metrics["epoch"]): {name: value for name, value in metrics.items() if name != "epoch"}
        for metrics in history
    }


def _failure(config: ExperimentConfig, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = shortened((lines or [repr(error)])[-1], longest=300)
    return (
        f"run {config.name!r} failed after {config.workers.max_failures} restarts ({reason}); fix the cause and run "
        "the same command again to resume from the last checkpoint"
    )


class EpochRecorder(UserCallback):
    """Ray Train callback that writes every epoch to the outbox once, and posts which workers were lost.

    It runs on Ray Train's controller. The driver delivers to MLflow, which takes seconds to import and may be slow: new
    workers would wait for it.
    """

    def __init__(self, uri: str, mailbox: Any, *, timeout_s: float) -> None:
        self._run_uri, self._mailbox, self._timeout_s = uri, mailbox, timeout_s

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Ray Train's hook: every worker has reported."""
        if "step" not in metrics[0]:
            values = metrics[0] | mean_of_workers(metrics) | object_store()
            tracking.write_history(self._run_uri, by_epoch([values]))
            self._mailbox.post.remote(EpochRecorded())

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Ray Train's hook: workers were lost."""
        if not any(map(is_final, worker_exceptions.values())):
            self._mailbox.post.remote(WorkersLost(reason=loss_reason(worker_exceptions, timeout_s=self._timeout_s)))


def loss_reason(errors: dict[int, Exception], *, timeout_s: float) -> str:
    """Why a group of workers was lost, in a few words, from their errors by rank.

    When a worker dies, those waiting for it fail too; when one hangs, only those fail.
    """
    died = sorted(rank for rank, error in errors.items() if "Died" in type(error).__name__ or "died" in str(error))
    if died:
        return f"worker {' and '.join(map(str, died))} died"
    if any("imed out" in str(error) for error in errors.values()):
        waited = ", ".join(map(str, sorted(errors)))
        return f"a worker did not answer for {timeout_s:g} s; worker {waited} had waited for it"
    rank, error = min(errors.items(), key=lambda item: item[0])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"worker {rank}: {shortened(str(own_error(error) or (lines or [repr(error)])[-1]), longest=200)}"
