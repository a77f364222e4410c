"""Ray Train's train_loop_per_worker: a worker's share of each pass, and the checkpoints from which a run resumes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.collective
import torch
from ray.train.torch import get_device

from twostream_ray import storage
from twostream_ray.data.loading.cpus import cpus_of_this_process
from twostream_ray.data.loading.decode_choice import choose_decode_at
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import NonFiniteLossError, TrainingError
from twostream_ray.model_package import ModelPackage, initialise_from, load_weights, save_model
from twostream_ray.models.build import Network
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.train.data_wait import CpuUse, data_wait_remedy
from twostream_ray.runs.train.events import (
    DecodingChosen,
    DeviceSettingsChosen,
    EpochEnded,
    Event,
    StepEnded,
    TrainingFailed,
    TrainingStopped,
    WorkersStarted,
)
from twostream_ray.runs.train.initial_weights import InitialWeights
from twostream_ray.runs.train.mailbox import Request
from twostream_ray.runs.train.system_metrics import SystemMetrics
from twostream_ray.storage.temporary_folders import sweep, temporary_folder
from twostream_ray.training.checkpoint import load_average, load_state, save_state
from twostream_ray.training.distributed import distributed, no_compiler, prepared, resolved
from twostream_ray.training.ema import WeightEma
from twostream_ray.training.loop import CheckpointPlan, score_pass, train_pass
from twostream_ray.training.matrix_rate import matrix_rate
from twostream_ray.training.recipe import (
    balanced_class_weights,
    build_optimiser,
    learning_rate_at,
    lost_patience,
)
from twostream_ray.training.running_metrics import PassResult
from twostream_ray.training.step import TrainingStep

_DRAIN_CHECKPOINT_SECONDS = 5.0
"""Least time between checkpoints while a node of the run is draining."""


def train_worker(arguments: dict[str, Any]) -> Network:
    """Train from the last checkpoint, or from the start, to the end; returns this worker's copy of the network.

    `arguments`: config, package, needs_rgb, needs_flow, data_folder (the run folder with the manifest and index that
    the run started with), initial (the weights to start from, if not the towers' own), flops_per_sample, and the
    mailbox that progress is posted to. A run that is requested to stop, or has a loss that is not finite, ends early
    and posts why.
    """
    # The environment that `ray_session` sets in the driver does not reach its workers; Ray Data would start an actor.
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    config: ExperimentConfig = arguments["config"]
    sweep()
    data_folder: RunFolder = arguments["data_folder"]
    shard_set = data_folder.stored_data(shards=config.data.shards) or open_shards(config.data.shards)
    worker = _Worker(
        config,
        arguments["package"],
        shard_set=shard_set,
        initial=arguments["initial"],
        mailbox=arguments["mailbox"],
        flops_per_sample=arguments["flops_per_sample"],
    )
    loader = SnippetLoader(
        shard_set,
        config=worker.data_config(want_flow=arguments["needs_flow"]),
        passes=worker.passes(),
        global_batch=config.training.global_batch,
        seed=config.seed,
        rank=ray.train.get_context().get_world_rank(),
        world_size=ray.train.get_context().get_world_size(),
        want_rgb=arguments["needs_rgb"],
        want_flow=arguments["needs_flow"],
    )
    metrics: dict[str, float] = {}
    try:
        for a_pass, batches in loader:
            if a_pass.training:
                metrics = worker.train(a_pass, batches, steps=loader.num_steps(a_pass))
            else:
                metrics |= worker.validate(batches)
            if (not a_pass.training or config.data.split_to_validate is None) and worker.end_epoch(metrics):
                break
    except _StopRequested:
        worker.post(TrainingStopped(), wait=True)
    except NonFiniteLossError as error:
        # Ray Train would restart from the last checkpoint, and get the same loss.
        worker.post(TrainingFailed(message=_advice(error, shard_set, compiled=worker.compiled)), wait=True)
    return worker.network


class _StopRequested(Exception):  # noqa: N818
    """The driver has requested the run to stop; the pass is saved in a checkpoint."""


class _Worker:
    """A worker's network, optimiser and training progress."""

    def __init__(
        self,
        config: ExperimentConfig,
        package: ModelPackage,
        *,
        shard_set: ShardSet,
        initial: InitialWeights | None,
        mailbox: Any,
        flops_per_sample: float,
    ) -> None:
        device = get_device()
        requested, config = config.training, replace(config, training=resolved(config.training, device))
        self._config, self._package, self._mailbox, self._shard_set = config, package, mailbox, shard_set
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        checkpoint = ray.train.get_checkpoint()
        network = _first_network(package, initial) if checkpoint is None else package.build(pretrained=False)
        self.network = prepared(network, config=config.training, device=device)
        self._optimiser = build_optimiser(self.network, config=config.training)
        decay = config.training.average_decay
        self._average = WeightEma(self.network, decay=decay) if decay else None
        self._history: list[dict[str, float]] = []
        self._first_step = 0
        self._earlier: PassResult | None = None
        self._notes: list[str] = []
        if checkpoint is not None:
            with _on_disk(checkpoint, storage_uri=config.storage) as directory:
                self._resume(directory)
        self._step = TrainingStep(
            distributed(self.network, config=config.training, device=device),
            self._optimiser,
            config=config.training,
            seed=config.seed,
            device=device,
            class_weights=balanced_class_weights(
                shard_set.labels[shard_set.split(config.data.split_to_train)], head_classes=self.network.head_classes
            )
            if config.training.class_weights == "balanced"
            else None,
            average=self._average,
            clip_ids=shard_set.clip_ids,
        )
        context = ray.train.get_context()
        self._is_rank_zero = context.get_world_rank() == 0
        self._flops_per_sample = flops_per_sample
        # Rank 0's metrics are the run's.
        self._matrix_rate = matrix_rate(device, precision=self._step.precision) if self._is_rank_zero else None
        self._data = config.data
        self._cpu_use = CpuUse(cpus=cpus_of_this_process())
        self._system_metrics = SystemMetrics()
        self._reply: Any = None
        self._request: Request = "continue"
        self._saved_at = 0.0
        mailbox.join.remote(
            context.get_world_rank(), world_size=context.get_world_size(), node=ray.get_runtime_context().get_node_id()
        )
        self.post(WorkersStarted(num_workers=context.get_world_size(), epoch=len(self._history), step=self._first_step))
        if requested.compile == "auto" and device.type == "cuda" and (reason := no_compiler(device)) is not None:
            self._notes.append(f"training.compile is false, as {reason}: a step would be faster")
        self._post_device_settings(device)

    def _resume(self, directory: Path) -> None:
        if self._average is None:
            load_weights(self.network, directory)
        else:
            load_weights(self.network, directory, averaged=True)
            load_average(self._average, directory)
        state = load_state(directory, self._optimiser)
        self._history, self._first_step = state["history"], state["step"]
        if self._first_step:
            result = state["result"]
            self._earlier = PassResult(**result | {"step_losses": tuple(result["step_losses"])})
        now = self._config.training.precision
        if any("val_top1" in epoch and "val_clips" not in epoch for epoch in self._history):
            self._notes.append("val_top1 of earlier epochs counted each view of a clip, from now on it counts clips")
        if (before := state.get("precision", now)) != now:
            self._notes.append(f"the run was trained in {before} and resumes in {now}: its device has changed")

    def _post_device_settings(self, device: torch.device) -> None:
        training = self._config.training
        self.post(
            DeviceSettingsChosen(
                device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
                precision=training.precision,
                channels_last=bool(training.channels_last),
                compile=bool(training.compile),
                notes=tuple(self._notes),
            )
        )

    @property
    def compiled(self) -> bool:
        """Whether the network is compiled."""
        return bool(self._config.training.compile)

    def data_config(self, *, want_flow: bool) -> DataConfig:
        """The data settings, with `decode_at` resolved for this worker."""
        device = get_device()
        choice = choose_decode_at(self._config.data, device, want_flow=want_flow)
        if device.type != "cpu" or choice.fell_back:
            self.post(DecodingChosen(at=choice.at, reason=choice.reason))
        self._data = replace(self._config.data, decode_at=choice.at)
        return self._data

    def passes(self) -> Iterator[Pass]:
        """The remaining passes."""
        data, training = self._config.data, self._config.training
        if lost_patience(self._history, config=training):
            return
        for epoch in range(len(self._history), training.epochs):
            begun = self._first_step if epoch == len(self._history) else 0
            yield Pass(split=data.split_to_train, epoch=epoch, training=True, first_step=begun)
            if data.split_to_validate:
                yield Pass(split=data.split_to_validate, epoch=epoch)

    def train(self, a_pass: Pass, batches: Iterator[Batch], *, steps: int) -> dict[str, float]:
        """Train an epoch, or the rest of it; returns the metrics of the whole epoch."""
        config, epoch = self._config, a_pass.epoch

        def report(step: int, loss: float) -> None:
            epochs = config.training.epochs
            self.post(StepEnded(epoch=epoch, num_epochs=epochs, step=step, num_steps=steps, loss=loss))

        def save(step: int, result: PassResult) -> None:
            state = {"history": self._history, "step": step, "result": asdict(self._with_earlier(result))}
            # Not an epoch's metrics: a checkpoint within an epoch can never be the best.
            metrics = {"epoch": epoch - 1 + step / steps, "step": step}
            self._save(state, metrics=metrics, name=f"epoch-{epoch:04d}-step-{step:06d}")
            if self._all_stop():
                raise _StopRequested

        self._cpu_use.start()
        made = train_pass(
            self._step,
            batches,
            epoch=epoch,
            num_steps=steps,
            first_step=a_pass.first_step,
            report=report,
            plan=CheckpointPlan(
                save=save, every_steps=config.workers.checkpoint_every_steps, requested=self._checkpoint_requested
            ),
        )
        self._cpu_use.stop()
        result, self._earlier = self._with_earlier(made), None
        return {
            "epoch": epoch,
            **_metrics("train", result),
            "samples_per_second": result.samples / result.seconds,
            "seconds": result.seconds,
            "data_wait": result.data_wait,
            **self._compute_rate(result),
            "learning_rate": learning_rate_at(epoch, config=config.training),
            **({"skipped_steps": result.skipped_steps} if config.training.on_nonfinite == "skip" else {}),
        }

    def _compute_rate(self, result: PassResult) -> dict[str, float]:
        """Floating-point operations a second of one worker's device, and their share of its matrix rate."""
        if self._matrix_rate is None:
            return {}
        workers = ray.train.get_context().get_world_size()
        rate = self._flops_per_sample * result.samples / result.seconds / workers
        return {"device_tflops_per_second": rate / 1e12, "device_matrix_rate_share": rate / self._matrix_rate}

    def _with_earlier(self, result: PassResult) -> PassResult:
        return result if self._earlier is None else result.after(self._earlier)

    def validate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Metrics of the validation split."""
        with self._averaged():
            # In float32, as `evaluate` and every user of the model computes: this metric selects the best checkpoint.
            result, _ = score_pass(self.network, batches, device=self._step.device)
        split = str(self._config.data.split_to_validate)
        wanted = len(self._shard_set.split(split))
        if result.clips != wanted:
            raise TrainingError(f"all {wanted} clips of {split} should be validated, got scores of {result.clips}")
        quarantined = self._shard_set.quarantined.get(split, 0)
        return _metrics("val", result) | {"val_clips": wanted, "val_clips_expected": wanted + quarantined}

    def end_epoch(self, metrics: dict[str, float]) -> bool:
        """Save a checkpoint and post the metrics; returns whether training should end here."""
        self._history = [*self._history, metrics]
        state = {"history": self._history, "step": 0}
        self._save(state, metrics=metrics | self._system_metrics.read(), name=f"epoch-{int(metrics['epoch']):04d}")
        epoch, epochs = int(metrics["epoch"]), self._config.training.epochs
        # In the first epoch reading starts up.
        remedy = data_wait_remedy(metrics["data_wait"], self._data, cpus=self._cpu_use) if epoch else None
        self.post(EpochEnded(epoch=epoch, num_epochs=epochs, metrics=metrics, remedy=remedy))
        if self._all_stop() and len(self._history) < self._config.training.epochs:
            raise _StopRequested
        return lost_patience(self._history, config=self._config.training)

    def post(self, event: Event, *, wait: bool = False) -> None:
        """Post an event from rank 0; `wait` blocks until it is in the mailbox. The reply is read with a later event."""
        if not self._is_rank_zero:
            return
        reply = self._mailbox.post.remote(event)
        if wait:
            ray.get(reply)
        elif self._reply is None:
            self._reply = reply
        elif ray.wait([self._reply], timeout=0)[0]:
            # The mailbox dies only with its driver: no reason to stop, the next driver resumes.
            with suppress(ray.exceptions.RayActorError):
                self._request = ray.get(self._reply)
            self._reply = reply

    def _checkpoint_requested(self) -> bool:
        if self._request == "checkpoint":
            return time.monotonic() - self._saved_at > _DRAIN_CHECKPOINT_SECONDS
        return self._request == "stop"

    def _all_stop(self) -> bool:
        """Whether rank 0 was requested to stop, the same on every worker."""
        return bool(ray.train.collective.broadcast_from_rank_zero(self._request == "stop"))

    def _averaged(self) -> Any:
        return nullcontext() if self._average is None else self._average.in_place()

    def _save(self, state: dict[str, Any], *, metrics: dict[str, float], name: str) -> None:
        """Hand metrics and, from rank 0, the checkpoint to Ray Train; returns when it is stored."""
        state = state | {"precision": self._config.training.precision}
        with temporary_folder() as folder:
            checkpoint = None
            if self._is_rank_zero:
                with self._averaged():
                    save_model(Path(folder), self.network, self._package)
                save_state(Path(folder), self._optimiser, state, network=self.network if self._average else None)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        self._saved_at = time.monotonic()


def _first_network(package: ModelPackage, initial: InitialWeights | None) -> Network:
    """The network before its first step, with the weights of `initial` or those that its towers name."""
    if initial is None:
        return package.build(pretrained=True)
    network = package.build(pretrained=False)
    with initial.on_disk() as directory:
        initialise_from(network, directory, heads=initial.keeps_heads)
    return network


@contextmanager
def _on_disk(checkpoint: ray.train.Checkpoint, *, storage_uri: str) -> Iterator[Path]:
    """A checkpoint's files on local disk; for s3:// a copy, which Ray's `as_directory` would leave after a kill."""
    if not storage.is_s3(storage_uri):
        yield Path(checkpoint.path)
        return
    with temporary_folder() as folder:
        yield Path(checkpoint.to_directory(folder))


def _advice(error: NonFiniteLossError, shard_set: ShardSet, *, compiled: bool) -> str:
    ids = shard_set.clip_ids(error.clips[:8])
    more = f" and {len(error.clips) - len(ids)} more" if len(error.clips) > len(ids) else ""
    return (
        f"{error}, from clips {', '.join(ids)}{more}: lower training.learning_rate, set training.clip_gradient_norm, "
        f"{'see whether training.compile=false helps, ' if compiled else ''}"
        "or leave such steps out with training.on_nonfinite=skip, under another --name"
    )


def _metrics(prefix: str, result: PassResult) -> dict[str, float]:
    """Top-1 of `train` counts augmented samples; top-1 of `val` counts clips, by the mean of their views."""
    losses = {f"{prefix}_loss_{tower}": loss for tower, loss in result.losses.items()}
    return {
        f"{prefix}_loss": sum(result.losses.values()),
        **losses,
        f"{prefix}_top1": result.top1,
        **{f"{prefix}_top1_{tower}": top1 for tower, top1 in result.tower_top1.items()},
        f"{prefix}_decoded_clips": result.decoded,
    }
