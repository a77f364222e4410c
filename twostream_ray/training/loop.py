"""Training and evaluation loop: one pass over any iterable of batches, alone or in a process group; knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from twostream_ray.data.loading.device import on_device
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import NonFiniteLossError
from twostream_ray.training.distributed import unwrapped
from twostream_ray.training.recipe import tower_losses, within_own_head
from twostream_ray.training.running_metrics import PassResult, RunningMetrics
from twostream_ray.training.settings import Precision
from twostream_ray.training.step import TrainingStep, logits

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
    """Train one epoch of `num_steps`, from `first_step` on. The result is that of the steps made here.

    Raises:
        NonFiniteLossError: a step's loss was NaN or infinite, and the settings say to stop; on every worker alike.
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
            metrics.add(dict(outcome.losses), outcome.scores, batch.labels, batch.weights)
        # One step late, so that a GPU always has the next step to work on.
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
    """A step's sums over all workers, which may still be on their way."""

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
    error = NonFiniteLossError(f"a finite loss was wanted, epoch {epoch + 1}, step {unread.number + 1} gave {loss}")
    error.clips = tuple(sorted(set(clips)))
    return error


@torch.no_grad()
def score_pass(
    model: nn.Module, batches: Iterator[Batch], *, device: torch.device, precision: Precision = "float32"
) -> tuple[PassResult, dict[int, NDArray[np.float32]]]:
    """Score a split: the result over all workers, and this worker's clip position -> video score (K,).

    A video's score is the mean of its views' scores, over the classes of all data sets. In the result a view counts as
    a sample.
    """
    network = unwrapped(model)
    network.eval()
    metrics = RunningMetrics(device)
    sums: dict[int, NDArray[np.float32]] = {}
    views: dict[int, int] = {}
    for batch in metrics.timed(on_device(batches, device)):
        rgb, flow = batch.streams()
        outputs = logits(network, rgb, flow, device=device, precision=precision)
        scores = network.all_scores(outputs)
        losses = tower_losses(outputs, batch.labels, weights=batch.weights, head_classes=network.head_classes)
        ranked = within_own_head(scores, batch.labels, head_classes=network.head_classes)
        metrics.add(losses, ranked, batch.labels, batch.weights)
        counts = batch.weights.tolist()
        for clip, weight, score in zip(batch.clips.tolist(), counts, scores.cpu().numpy(), strict=True):
            if weight:
                sums[clip] = sums[clip] + score if clip in sums else score
                views[clip] = views.get(clip, 0) + 1
    return metrics.result(), {clip: total / np.float32(views[clip]) for clip, total in sums.items()}


def synchronise_buffers(model: nn.Module) -> None:
    """Give every worker rank 0's batch-norm moments, so that all score and store the same network."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in unwrapped(model).buffers():
            dist.broadcast(buffer, src=0)
