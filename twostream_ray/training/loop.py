"""One step, one pass, over any iterable of batches; works alone and in a process group, and knows no Ray."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from twostream_ray.data.snippets import Batch
from twostream_ray.data.transforms import normalise_flow, normalise_rgb
from twostream_ray.models.networks import Network
from twostream_ray.training.recipe import (
    Precision,
    TrainingConfig,
    learning_rate_at,
    set_learning_rate,
    total_loss,
    tower_losses,
    within_own_head,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PassResult:
    """What a pass over a split came to, over all workers."""

    losses: dict[str, float]
    """Mean cross-entropy per sample of each tower."""
    top1: float
    """Fraction of samples whose class had the highest score within its own data set, in [0, 1]."""
    samples: int
    """Samples that counted."""
    seconds: float
    """Wall time."""
    data_wait: float
    """Fraction of the wall time in which this worker waited for data."""
    step_losses: tuple[float, ...] = ()
    """Total loss of each training step, over the global batch."""

    def after(self, earlier: PassResult) -> PassResult:
        """The result of both parts of a pass that was broken off and resumed."""
        samples, seconds = earlier.samples + self.samples, earlier.seconds + self.seconds

        def mean(before: float, now: float) -> float:
            return (before * earlier.samples + now * self.samples) / max(samples, 1)

        return PassResult(
            losses={tower: mean(earlier.losses[tower], loss) for tower, loss in self.losses.items()},
            top1=mean(earlier.top1, self.top1),
            samples=samples,
            seconds=seconds,
            data_wait=(earlier.data_wait * earlier.seconds + self.data_wait * self.seconds) / max(seconds, 1e-9),
            step_losses=earlier.step_losses + self.step_losses,
        )


StepReport = Callable[[int, float], None]
"""Called after each step with (steps done, total loss of the step on this worker, scaled to the global batch)."""

Keep = Callable[[int, PassResult], None]
"""Called where a pass is to be kept with (steps done, result so far over all workers)."""


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """A batch's streams, normalised on the device, with labels and weights."""

    def moved(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return (
        None if batch.rgb is None else normalise_rgb(moved(batch.rgb)),
        None if batch.flow is None else normalise_flow(moved(batch.flow)),
        moved(batch.labels),
        moved(batch.weights),
    )


def prepared(network: Network, *, config: TrainingConfig, device: torch.device) -> Network:
    """The network on its device, laid out and compiled as the settings say; before the optimiser takes its parameters.

    Names and shapes of the parameters stay, so checkpoints go from any setting to any other.
    """
    network.to(device)
    if config.channels_last:
        network.to_channels_last()
    if config.compile:
        network.compile()
    return network


def train_pass(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
    *,
    config: TrainingConfig,
    epoch: int,
    num_steps: int,
    seed: int,
    device: torch.device,
    first_step: int = 0,
    report: StepReport | None = None,
    keep: Keep | None = None,
    keep_every_steps: int | None = None,
) -> PassResult:
    """Train one epoch, from `first_step` on; `model` is a Network, or DistributedDataParallel around one.

    Gradients are those of the mean loss over the global batch, whatever part of it lies on this worker. The result is
    that of the steps made here.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    network = unwrapped(model)
    model.train()
    tally = _Tally(device)
    step_losses: list[Tensor] = []
    for step, batch in enumerate(tally.timed(batches), start=first_step):
        _seed_dropout(seed=seed, epoch=epoch, step=step)
        set_learning_rate(optimiser, learning_rate_at(epoch + step / num_steps, config=config))
        rgb, flow, labels, weights = to_device(batch, device)
        outputs = _outputs(model, rgb, flow, device=device, precision=config.precision)
        losses = tower_losses(outputs, labels, weights=weights, head_classes=network.head_classes)
        # Workers average their gradients; sums over the global batch are wanted instead.
        loss = total_loss(losses, config=config) / batch.total
        optimiser.zero_grad(set_to_none=True)
        (loss * world_size).backward()
        if config.clip_gradient_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_gradient_norm)
        optimiser.step()
        scores = network.all_scores(outputs).detach()
        tally.add(losses, within_own_head(scores, labels, head_classes=network.head_classes), labels, weights)
        step_losses.append(loss.detach())
        if report is not None:
            report(step + 1, float(loss.detach()) * world_size)
        done = step + 1
        if keep is not None and keep_every_steps and done % keep_every_steps == 0 and done < num_steps:
            keep(done, tally.result(step_losses))
    synchronise_buffers(model)
    return tally.result(step_losses)


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
    tally = _Tally(device)
    sums: dict[int, NDArray[np.float32]] = {}
    views: dict[int, int] = {}
    for batch in tally.timed(batches):
        rgb, flow, labels, weights = to_device(batch, device)
        outputs = _outputs(network, rgb, flow, device=device, precision=precision)
        scores = network.all_scores(outputs)
        losses = tower_losses(outputs, labels, weights=weights, head_classes=network.head_classes)
        tally.add(losses, within_own_head(scores, labels, head_classes=network.head_classes), labels, weights)
        for clip, weight, score in zip(batch.clips.tolist(), batch.weights.tolist(), scores.cpu().numpy(), strict=True):
            if weight:
                sums[clip] = sums[clip] + score if clip in sums else score
                views[clip] = views.get(clip, 0) + 1
    return tally.result(), {clip: total / np.float32(views[clip]) for clip, total in sums.items()}


def _outputs(
    model: nn.Module, rgb: Tensor | None, flow: Tensor | None, *, device: torch.device, precision: Precision
) -> dict[str, Tensor]:
    """Logits (N, K) by tower, in 32 bits whatever the layers were computed in."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = model(rgb, flow)
    return {tower: logits.float() for tower, logits in outputs.items()}


def unwrapped(model: nn.Module) -> Network:
    """The network inside DistributedDataParallel, or itself."""
    return cast(Network, getattr(model, "module", model))


def synchronise_buffers(model: nn.Module) -> None:
    """Give every worker rank 0's batch-norm moments, so that all score and store the same network."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in unwrapped(model).buffers():
            dist.broadcast(buffer, src=0)


def _seed_dropout(*, seed: int, epoch: int, step: int) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    digest = hashlib.blake2b(f"{seed}/{epoch}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


class _Tally:
    """Sums over a pass, added up over workers at its end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.monotonic()
        self._waited = 0.0
        self._losses: dict[str, Tensor] = {}
        self._hits = torch.zeros((), device=device, dtype=torch.float64)
        self._samples = torch.zeros((), device=device, dtype=torch.float64)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, Tensor], scores: Tensor, labels: Tensor, weights: Tensor) -> None:
        for tower, loss in losses.items():
            self._losses[tower] = self._losses.get(tower, 0.0) + loss.detach().double()
        self._hits += ((scores.argmax(dim=1) == labels) * weights).sum()
        self._samples += weights.sum()

    def result(self, step_losses: list[Tensor] | None = None) -> PassResult:
        steps = (
            torch.stack(step_losses).double()
            if step_losses
            else torch.zeros(0, device=self._device, dtype=torch.float64)
        )
        sums = torch.cat([torch.stack([self._hits, self._samples, *self._losses.values()]), steps])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        seconds = time.monotonic() - self._started
        hits, samples, *rest = sums.tolist()
        towers = len(self._losses)
        return PassResult(
            losses={tower: loss / max(samples, 1) for tower, loss in zip(self._losses, rest[:towers], strict=True)},
            top1=hits / max(samples, 1),
            samples=round(samples),
            seconds=seconds,
            data_wait=self._waited / max(seconds, 1e-9),
            step_losses=tuple(rest[towers:]),
        )
