"""What every training worker runs: its share of the passes, and the checkpoints that let others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.collective
import torch
from ray.train.torch import get_device

from twostream_ray import storage
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import NonFiniteLossError
from twostream_ray.model_package import ModelPackage, load_weights, save_model
from twostream_ray.models.build import Network
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import kept_data
from twostream_ray.runs.train.mailbox import Request
from twostream_ray.runs.train.system_metrics import SystemMetrics
from twostream_ray.storage.temporary_folders import sweep, temporary_folder
from twostream_ray.training.checkpoint import load_average, load_state, save_state
from twostream_ray.training.ema import WeightEma
from twostream_ray.training.loop import KeepPlan, score_pass, train_pass
from twostream_ray.training.recipe import (
    balanced_class_weights,
    build_optimiser,
    learning_rate_at,
    lost_patience,
)
from twostream_ray.training.running_metrics import PassResult
from twostream_ray.training.step import TrainingStep, distributed, prepared

_SECONDS_BETWEEN_LAST_CHECKPOINTS = 5.0
"""A machine about to be taken away keeps its progress this often."""


def train_worker(arguments: dict[str, Any]) -> Network:
    """Train from the last checkpoint, or from the start, to the end; gives this worker's copy of the network.

    `arguments`: config, package, needs_rgb, needs_flow, data_uri, where it is written down which data the run began
    with, and the board that progress is posted to. A run that is asked
    to stop, or that meets a loss that is not finite, ends early and says so on the board.
    """
    # What `runs.session` says in the driver does not reach its workers, and Ray Data would start an actor for this.
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    config: ExperimentConfig = arguments["config"]
    sweep()
    shard_set = kept_data(arguments["data_uri"], shards=config.data.shards) or open_shards(config.data.shards)
    worker = _Worker(config, arguments["package"], shard_set=shard_set, board=arguments["board"])
    loader = SnippetLoader(
        shard_set,
        config=config.data,
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
            if (not a_pass.training or config.data.validation_split is None) and worker.end_epoch(metrics):
                break
    except _AskedToStop:
        worker.tell({"kind": "stopped"})
    except NonFiniteLossError as error:
        # Ray Train would start again from the last checkpoint, and meet the same loss.
        worker.tell({"kind": "failed", "message": _advice(error, shard_set)})
    return worker.network


class _AskedToStop(Exception):  # noqa: N818
    """The driver wants the run to end; the pass has been kept."""


class _Worker:
    """The network, its optimiser, and how far they have come."""

    def __init__(self, config: ExperimentConfig, package: ModelPackage, *, shard_set: ShardSet, board: Any) -> None:
        self._config, self._package, self._board = config, package, board
        device = get_device()
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        checkpoint = ray.train.get_checkpoint()
        self.network = prepared(package.build(pretrained=checkpoint is None), config=config.training, device=device)
        self._optimiser = build_optimiser(self.network, config=config.training)
        decay = config.training.average_decay
        self._average = WeightEma(self.network, decay=decay) if decay else None
        self._history: list[dict[str, float]] = []
        self._first_step = 0
        self._earlier: PassResult | None = None
        if checkpoint is not None:
            with _on_disk(checkpoint, storage_uri=config.storage) as directory:
                self._go_on(directory)
        self._step = TrainingStep(
            distributed(self.network, config=config.training, device=device),
            self._optimiser,
            config=config.training,
            seed=config.seed,
            device=device,
            class_weights=balanced_class_weights(
                shard_set.labels[shard_set.split(config.data.train_split)], head_classes=self.network.head_classes
            )
            if config.training.class_weights == "balanced"
            else None,
            average=self._average,
        )
        context = ray.train.get_context()
        self._first = context.get_world_rank() == 0
        self._answer: Any = None
        self._gauges = SystemMetrics()
        self._wish: Request = ""
        self._kept = 0.0
        board.join.remote(
            context.get_world_rank(), world_size=context.get_world_size(), node=ray.get_runtime_context().get_node_id()
        )
        begun = {"epoch": len(self._history), "step": self._first_step}
        self._post({"kind": "begin", "workers": context.get_world_size(), **begun})

    def _go_on(self, directory: Path) -> None:
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

    def passes(self) -> Iterator[Pass]:
        """What is left to do."""
        data, training = self._config.data, self._config.training
        if lost_patience(self._history, config=training):
            return
        for epoch in range(len(self._history), training.epochs):
            begun = self._first_step if epoch == len(self._history) else 0
            yield Pass(split=data.train_split, epoch=epoch, training=True, first_step=begun)
            if data.validation_split:
                yield Pass(split=data.validation_split, epoch=epoch)

    def train(self, a_pass: Pass, batches: Iterator[Batch], *, steps: int) -> dict[str, float]:
        """One epoch, or what is left of it; gives the metrics of the whole epoch."""
        config, epoch = self._config, a_pass.epoch

        def show(step: int, loss: float) -> None:
            epochs = config.training.epochs
            self._post({"kind": "step", "epoch": epoch, "epochs": epochs, "step": step, "steps": steps, "loss": loss})

        def keep(step: int, result: PassResult) -> None:
            state = {"history": self._history, "step": step, "result": asdict(self._with_earlier(result))}
            # Not the metrics of an epoch: no checkpoint within one can be the best.
            metrics = {"epoch": epoch - 1 + step / steps, "step": step}
            self._report(state, metrics=metrics, name=f"epoch-{epoch:04d}-step-{step:06d}")
            if self._all_stopping():
                raise _AskedToStop

        made = train_pass(
            self._step,
            batches,
            epoch=epoch,
            num_steps=steps,
            first_step=a_pass.first_step,
            report=show,
            plan=KeepPlan(keep=keep, every_steps=config.workers.checkpoint_every_steps, wanted=self._wants_to_keep),
        )
        result, self._earlier = self._with_earlier(made), None
        return {
            "epoch": epoch,
            **_metrics("train", result),
            "samples_per_second": result.samples / result.seconds,
            "seconds": result.seconds,
            "data_wait": result.data_wait,
            "learning_rate": learning_rate_at(epoch, config=config.training),
            **({"skipped_steps": result.skipped_steps} if config.training.on_nonfinite == "skip" else {}),
        }

    def _with_earlier(self, result: PassResult) -> PassResult:
        return result if self._earlier is None else result.after(self._earlier)

    def validate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Metrics of the validation split."""
        with self._averaged():
            result, _ = score_pass(
                self.network, batches, device=self._step.device, precision=self._config.training.precision
            )
        return _metrics("val", result)

    def end_epoch(self, metrics: dict[str, float]) -> bool:
        """Keep what has been reached, and tell everyone; gives whether training should end here."""
        self._history = [*self._history, metrics]
        state = {"history": self._history, "step": 0}
        self._report(state, metrics=metrics | self._gauges.read(), name=f"epoch-{int(metrics['epoch']):04d}")
        self._post({"kind": "epoch", "epochs": self._config.training.epochs, **metrics})
        if self._all_stopping() and len(self._history) < self._config.training.epochs:
            raise _AskedToStop
        return lost_patience(self._history, config=self._config.training)

    def tell(self, event: dict[str, Any]) -> None:
        """Post an event, and wait until it is there."""
        if self._first:
            ray.get(self._board.post.remote(event))

    def _post(self, event: dict[str, Any]) -> None:
        """Post an event; the answer of an earlier one says what is wanted."""
        if not self._first:
            return
        answer = self._board.post.remote(event)
        if self._answer is None:
            self._answer = answer
        elif ray.wait([self._answer], timeout=0)[0]:
            # A board that is gone has gone with its driver: no reason to stop, the next driver goes on.
            with suppress(ray.exceptions.RayActorError):
                self._wish = ray.get(self._answer)
            self._answer = answer

    def _wants_to_keep(self) -> bool:
        if self._wish == "keep":
            return time.monotonic() - self._kept > _SECONDS_BETWEEN_LAST_CHECKPOINTS
        return self._wish == "stop"

    def _all_stopping(self) -> bool:
        """Rank 0's word, for every worker."""
        return bool(ray.train.collective.broadcast_from_rank_zero(self._wish == "stop"))

    def _averaged(self) -> Any:
        return nullcontext() if self._average is None else self._average.in_place()

    def _report(self, state: dict[str, Any], *, metrics: dict[str, float], name: str) -> None:
        """Hand metrics and, from rank 0, the checkpoint to Ray Train; returns when it is stored."""
        with temporary_folder() as folder:
            checkpoint = None
            if self._first:
                with self._averaged():
                    save_model(Path(folder), self.network, self._package)
                save_state(Path(folder), self._optimiser, state, network=self.network if self._average else None)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        self._kept = time.monotonic()


@contextmanager
def _on_disk(checkpoint: ray.train.Checkpoint, *, storage_uri: str) -> Iterator[Path]:
    """A checkpoint's files on this machine; of s3:// a copy, which Ray's own way would leave if this were killed."""
    if not storage.is_s3(storage_uri):
        yield Path(checkpoint.path)
        return
    with temporary_folder() as folder:
        yield Path(checkpoint.to_directory(folder))


def _advice(error: NonFiniteLossError, shard_set: ShardSet) -> str:
    ids = [shard_set.index["clip_id"][clip].as_py() for clip in error.clips[:8]]
    more = f" and {len(error.clips) - len(ids)} more" if len(error.clips) > len(ids) else ""
    return (
        f"{error}, from clips {', '.join(ids)}{more}: lower training.learning_rate, set training.clip_gradient_norm, "
        "or leave such steps out with training.on_nonfinite=skip, under another --name"
    )


def _metrics(prefix: str, result: PassResult) -> dict[str, float]:
    losses = {f"{prefix}_loss_{tower}": loss for tower, loss in result.losses.items()}
    return {
        f"{prefix}_loss": sum(result.losses.values()),
        **losses,
        f"{prefix}_top1": result.top1,
        f"{prefix}_decoded_clips": result.decoded,
    }
