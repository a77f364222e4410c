"""What every training worker runs: its share of the passes, and the checkpoints that let others go on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device, prepare_model

from twostream_ray.data.lanes import Pass
from twostream_ray.data.pipeline import SnippetLoader
from twostream_ray.data.shards import open_shards
from twostream_ray.data.snippets import Batch
from twostream_ray.models.networks import Network
from twostream_ray.runs.config import ExperimentConfig
from twostream_ray.training.checkpoint import ModelPackage, load_state, load_weights, save_model, save_state
from twostream_ray.training.loop import PassResult, prepared, score_pass, train_pass, unwrapped
from twostream_ray.training.recipe import build_optimiser, learning_rate_at


def train_worker(arguments: dict[str, Any]) -> Network:
    """Train from the last checkpoint, or from the start, to the end; gives this worker's copy of the network.

    `arguments`: config, package, needs_rgb, needs_flow, and the board that progress is posted to.
    """
    config: ExperimentConfig = arguments["config"]
    worker = _Worker(config, arguments["package"], board=arguments["board"])
    loader = SnippetLoader(
        open_shards(config.data.shards),
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
    for a_pass, batches in loader:
        if a_pass.training:
            metrics = worker.train(a_pass, batches, steps=loader.num_steps(a_pass))
        else:
            metrics |= worker.validate(batches)
        if not a_pass.training or config.data.validation_split is None:
            worker.end_epoch(metrics)
    return unwrapped(worker.model)


class _Worker:
    """The network, its optimiser, and how far they have come."""

    def __init__(self, config: ExperimentConfig, package: ModelPackage, *, board: Any) -> None:
        self._config, self._package, self._board = config, package, board
        self._device = get_device()
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        checkpoint = ray.train.get_checkpoint()
        network = prepared(package.build(pretrained=checkpoint is None), config=config.training, device=self._device)
        self._optimiser = build_optimiser(network, config=config.training)
        self._history: list[dict[str, float]] = []
        self._first_step = 0
        self._earlier: PassResult | None = None
        if checkpoint is not None:
            with checkpoint.as_directory() as directory:
                load_weights(network, Path(directory))
                state = load_state(Path(directory), self._optimiser)
            self._history, self._first_step = state["history"], state["step"]
            if self._first_step:
                result = state["result"]
                self._earlier = PassResult(**result | {"step_losses": tuple(result["step_losses"])})
        self.model = prepare_model(network)

    def passes(self) -> Iterator[Pass]:
        """What is left to do."""
        data = self._config.data
        for epoch in range(len(self._history), self._config.training.epochs):
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

        made = train_pass(
            self.model,
            self._optimiser,
            batches,
            config=config.training,
            epoch=epoch,
            num_steps=steps,
            seed=config.seed,
            device=self._device,
            first_step=a_pass.first_step,
            report=show,
            keep=keep,
            keep_every_steps=config.workers.checkpoint_every_steps,
        )
        result, self._earlier = self._with_earlier(made), None
        return {
            "epoch": epoch,
            **_metrics("train", result),
            "samples_per_second": result.samples / result.seconds,
            "seconds": result.seconds,
            "data_wait": result.data_wait,
            "learning_rate": learning_rate_at(epoch, config=config.training),
        }

    def _with_earlier(self, result: PassResult) -> PassResult:
        return result if self._earlier is None else result.after(self._earlier)

    def validate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Metrics of the validation split."""
        precision = self._config.training.precision
        return _metrics("val", score_pass(self.model, batches, device=self._device, precision=precision)[0])

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Keep what has been reached, and tell everyone."""
        self._history = [*self._history, metrics]
        state = {"history": self._history, "step": 0}
        self._report(state, metrics=metrics, name=f"epoch-{int(metrics['epoch']):04d}")
        self._post({"kind": "epoch", "epochs": self._config.training.epochs, **metrics})

    def _post(self, event: dict[str, Any]) -> None:
        if ray.train.get_context().get_world_rank() == 0:
            self._board.post.remote(event)

    def _report(self, state: dict[str, Any], *, metrics: dict[str, float], name: str) -> None:
        """Hand metrics and, from rank 0, the checkpoint to Ray Train; returns when it is stored."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                save_model(Path(folder), unwrapped(self.model), self._package)
                save_state(Path(folder), self._optimiser, state)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)


def _metrics(prefix: str, result: PassResult) -> dict[str, float]:
    losses = {f"{prefix}_loss_{tower}": loss for tower, loss in result.losses.items()}
    return {f"{prefix}_loss": sum(result.losses.values()), **losses, f"{prefix}_top1": result.top1}
