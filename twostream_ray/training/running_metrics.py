"""Running metrics of a pass: losses, hits, samples and time, summed over its steps and over all workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from twostream_ray.data.loading.device import DeviceBatch
from twostream_ray.training.recipe import NETWORK


@dataclass(frozen=True, kw_only=True, slots=True)
class PassResult:
    """Metrics of a pass over a split, over all workers."""

    losses: dict[str, float]
    """Mean cross-entropy per sample of each tower."""
    top1: float
    """Fraction of right answers, the class with the highest score within its own data set, in [0, 1]: of training
    samples, each as it was drawn, before the update, of a mixed one each label by its share; of a scored split's
    clips, by the mean over their views."""
    samples: int
    """Samples without padding; for a scored split, every view."""
    seconds: float
    """Wall time."""
    data_wait: float
    """Fraction of the wall time that this worker waited for data."""
    step_losses: tuple[float, ...] = ()
    """Total loss of each training step, over the global batch; without the skipped ones."""
    skipped_steps: int = 0
    """Steps skipped because of a non-finite loss."""
    decoded: int = 0
    """Clips decoded in this pass; the remaining samples came from the cache."""
    tower_top1: dict[str, float] = field(default_factory=dict)
    """top1 of each tower's own scores; empty for a network with one tower."""
    clips: int = 0
    """Clips of a scored split, each once over all workers; 0 in training."""

    def after(self, earlier: PassResult) -> PassResult:
        """Combine the results of both parts of an interrupted and resumed pass."""
        samples, seconds = earlier.samples + self.samples, earlier.seconds + self.seconds

        def mean(before: float, now: float) -> float:
            return (before * earlier.samples + now * self.samples) / max(samples, 1)

        def means(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
            return {tower: mean(before.get(tower, 0.0), now.get(tower, 0.0)) for tower in before | now}

        # A checkpoint of an earlier version has no tower_top1: half an epoch's would pass for the whole epoch's.
        complete = not earlier.samples or earlier.tower_top1.keys() == self.tower_top1.keys()
        return PassResult(
            losses=means(earlier.losses, self.losses),
            top1=mean(earlier.top1, self.top1),
            samples=samples,
            seconds=seconds,
            data_wait=(earlier.data_wait * earlier.seconds + self.data_wait * self.seconds) / max(seconds, 1e-9),
            step_losses=earlier.step_losses + self.step_losses,
            skipped_steps=earlier.skipped_steps + self.skipped_steps,
            decoded=earlier.decoded + self.decoded,
            tower_top1=means(earlier.tower_top1, self.tower_top1) if complete else {},
        )


class RunningMetrics:
    """Accumulates metrics over a pass; all-reduced over workers at its end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.monotonic()
        self._waited = 0.0
        self._losses: dict[str, Tensor] = {}
        self._hits: dict[str, Tensor] = {}
        self._samples = torch.zeros((), device=device, dtype=torch.float64)
        self._decoded = 0

    def timed(self, batches: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """Yield the batches, measuring the time spent waiting for each."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            self._decoded += batch.decoded
            yield batch

    def add(self, losses: Mapping[str, Tensor], hits: Mapping[str, Tensor], weights: Tensor) -> None:
        """Add a batch: summed losses by tower, hits by tower or network, weights (N,) of its samples."""
        for tower, loss in losses.items():
            self._losses[tower] = self._losses.get(tower, 0.0) + loss.detach().double()
        for name, count in hits.items():
            self._hits[name] = self._hits.get(name, 0.0) + count
        self._samples += weights.sum(dtype=torch.float64)

    def result(self, *, step_losses: Sequence[float] = (), skipped_steps: int = 0) -> PassResult:
        """The result so far; collective, call on all workers at the same step."""
        decoded = torch.tensor(self._decoded, device=self._device, dtype=torch.float64)
        sums = torch.stack([self._samples, decoded, *self._losses.values(), *self._hits.values()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        seconds = time.monotonic() - self._started
        samples, clips, *of_names = sums.tolist()
        shares = [value / max(samples, 1) for value in of_names]
        top1 = dict(zip(self._hits, shares[len(self._losses) :], strict=True))
        return PassResult(
            losses=dict(zip(self._losses, shares[: len(self._losses)], strict=True)),
            top1=top1.pop(NETWORK, 0.0),
            samples=round(samples),
            seconds=seconds,
            data_wait=self._waited / max(seconds, 1e-9),
            step_losses=tuple(step_losses),
            skipped_steps=skipped_steps,
            decoded=round(clips),
            tower_top1=top1,
        )
