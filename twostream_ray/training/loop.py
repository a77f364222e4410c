"""Training and evaluation loops: one pass over an iterable of batches, single-process or in a process group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from twostream_ray.data.loading.device import on_device
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import NonFiniteLossError
from twostream_ray.training.clip_scores import ClipScores
from twostream_ray.training.distributed import unwrapped
from twostream_ray.training.recipe import NETWORK, scores_by_tower, tower_losses
from twostream_ray.training.running_metrics import PassResult, RunningMetrics
from twostream_ray.training.settings import Precision
from twostream_ray.training.step import TrainingStep, logits

_VIEWS_AT_ONCE = 128
"""Samples per forward pass without gradients: in validation each clip of a batch has several views, too many for the
memory that a training step needs."""

StepReport = Callable[[int, float], None]
"""Called after each step with (steps done, total loss of the step over the global batch)."""

Save = Callable[[int, PassResult], None]
"""Called to save a checkpoint within a pass with (steps done, result so far over all workers)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointPlan:
    """When and how checkpoints are saved within a pass."""

    save: Save
    every_steps: int | None = None
    """Steps from one checkpoint to the next."""
    requested: Callable[[], bool] = lambda: False
    """Called on every worker after each step; a checkpoint is saved a step after any of them has returned true."""


def train_pass(
    step: TrainingStep,
    batches: Iterator[Batch],
    *,
    epoch: int,
    num_steps: int,
    first_step: int = 0,
    report: StepReport | None = None,
    plan: CheckpointPlan | None = None,
) -> PassResult:
    """Train an epoch of `num_steps`, starting at `first_step`; the result covers the steps made in this call.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite and training.on_nonfinite is stop; raised on every worker.
    """
    step.model.train()
    metrics = RunningMetrics(step.device)
    losses: list[float] = []
    skipped = 0
    unread: _Unread | None = None

    def read() -> bool:
        """Read the workers' sums of the last step; returns whether one of them requests a checkpoint."""
        nonlocal unread, skipped
        if unread is None:
            return False
        loss, requests = unread.values.tolist()
        if unread.skipped:
            skipped += 1
        elif not np.isfinite(loss):
            raise _non_finite(loss, unread, epoch=epoch)
        else:
            losses.append(loss)
        if report is not None:
            report(unread.number + 1, loss)
        unread = None
        return bool(requests)

    for number, batch in enumerate(metrics.timed(on_device(batches, step.device)), start=first_step):
        outcome = step(batch, epoch=epoch, step=number, num_steps=num_steps)
        if not outcome.skipped:
            metrics.add(outcome.losses, outcome.hits, batch.weights)
        # Read one step late, so that the GPU always has queued work.
        requested = read()
        asks = plan is not None and plan.requested()
        unread = _reduced(number, outcome.loss, requested=asks, batch_clips=batch.clips)
        unread.skipped = outcome.skipped
        done = number + 1
        regular = plan is not None and plan.every_steps and done % plan.every_steps == 0
        if plan is not None and (regular or requested) and done < num_steps:
            read()
            plan.save(done, metrics.result(step_losses=losses, skipped_steps=skipped))
    read()
    synchronise_buffers(step.model)
    return metrics.result(step_losses=losses, skipped_steps=skipped)


@dataclass(kw_only=True, slots=True)
class _Unread:
    """A step's all-reduced sums, which may still be in flight."""

    number: int
    values: Tensor
    """(2,): loss, and how many workers request a checkpoint."""
    own_loss: Tensor
    clips: NDArray[np.int64]
    skipped: bool = False


def _reduced(number: int, loss: Tensor, *, requested: bool, batch_clips: NDArray[np.int64]) -> _Unread:
    values = torch.stack([loss, torch.full_like(loss, float(requested))])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return _Unread(number=number, values=values, own_loss=loss, clips=batch_clips)


def _non_finite(loss: float, unread: _Unread, *, epoch: int) -> NonFiniteLossError:
    mine = [] if torch.isfinite(unread.own_loss) else unread.clips.tolist()
    clips = mine
    if dist.is_initialized() and dist.get_world_size() > 1:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        clips = [clip for part in gathered for clip in part]
    error = NonFiniteLossError(f"the loss is {loss} in epoch {epoch + 1}, step {unread.number + 1}")
    error.clips = tuple(sorted(set(clips)))
    return error


@torch.no_grad()
def score_pass(
    model: nn.Module, batches: Iterator[Batch], *, device: torch.device, precision: Precision = "float32"
) -> tuple[PassResult, dict[int, NDArray[np.float32]]]:
    """Score a split: the result over all workers, and this worker's clip position -> video score (K,).

    A video's score is the mean of its views' scores, over the classes of all data sets. Top-1 in the result is that of
    videos; the losses are means over views.
    """
    network = unwrapped(model)
    network.eval()
    metrics = RunningMetrics(device)
    videos = ClipScores(head_classes=network.head_classes)
    for device_batch in metrics.timed(on_device(batches, device)):
        for batch in device_batch.parts(math.ceil(len(device_batch.labels) / _VIEWS_AT_ONCE)):
            rgb, flow = batch.streams()
            outputs = logits(network, rgb, flow, device=device, precision=precision)
            losses = tower_losses(outputs, batch.labels, weights=batch.weights, head_classes=network.head_classes)
            metrics.add(losses, {}, batch.weights)
            scores = scores_by_tower(network, outputs)
            videos.add(scores, clips=batch.clips.tolist(), labels=batch.labels, weights=batch.weights)
    videos.gather()
    accuracy = videos.accuracy(device)
    result = replace(
        metrics.result(),
        top1=accuracy.top1(NETWORK),
        tower_top1={name: accuracy.top1(name) for name in accuracy.hits if name != NETWORK},
        clips=accuracy.clips,
    )
    return result, videos.means(NETWORK)


def synchronise_buffers(model: nn.Module) -> None:
    """Broadcast rank 0's batch norm moments, so that all workers score and save the same network."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in unwrapped(model).buffers():
            dist.broadcast(buffer, src=0)
