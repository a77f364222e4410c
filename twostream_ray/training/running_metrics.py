"""Running metrics of a pass: losses, hits, samples and time, summed over its steps and over all workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from twostream_ray.data.loading.device import DeviceBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class PassResult:
    """Metrics of a pass over a split, over all workers."""

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
    """Total loss of each training step, over the global batch; without the skipped ones."""
    skipped_steps: int = 0
    """Steps left out because their loss was not finite."""
    decoded: int = 0
    """Clips decoded for it; the others' samples were kept from before."""

    def after(self, earlier: PassResult) -> PassResult:
        """The result of both parts of a pass that was broken off and resumed."""
        samples, seconds = earlier.samples + self.samples, earlier.seconds + self.seconds

        def mean(before: float, now: float) -> float:
            return (before * earlier.samples + now * self.samples) / max(samples, 1)

        towers = earlier.losses | self.losses
        return PassResult(
            losses={t: mean(earlier.losses.get(t, 0.0), self.losses.get(t, 0.0)) for t in towers},
            top1=mean(earlier.top1, self.top1),
            samples=samples,
            seconds=seconds,
            data_wait=(earlier.data_wait * earlier.seconds + self.data_wait * self.seconds) / max(seconds, 1e-9),
            step_losses=earlier.step_losses + self.step_losses,
            skipped_steps=earlier.skipped_steps + self.skipped_steps,
            decoded=earlier.decoded + self.decoded,
        )


class RunningMetrics:
    """Sums over a pass, added up over workers at its end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.monotonic()
        self._waited = 0.0
        self._losses: dict[str, Tensor] = {}
        self._hits = torch.zeros((), device=device, dtype=torch.float64)
        self._samples = torch.zeros((), device=device, dtype=torch.float64)
        self._decoded = 0

    def timed(self, batches: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """The batches; the time spent waiting for each is counted."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            self._decoded += batch.decoded
            yield batch

    def add(self, losses: dict[str, Tensor], scores: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Count a batch: summed losses by tower, scores (N, K), labels (N,), weights (N,)."""
        for tower, loss in losses.items():
            self._losses[tower] = self._losses.get(tower, 0.0) + loss.detach().double()
        self._hits += ((scores.argmax(dim=1) == labels) * weights).sum()
        self._samples += weights.sum()

    def result(self, *, step_losses: Sequence[float] = (), skipped_steps: int = 0) -> PassResult:
        """The result so far; every worker must ask at the same step."""
        decoded = torch.tensor(self._decoded, device=self._device, dtype=torch.float64)
        sums = torch.stack([self._hits, self._samples, decoded, *self._losses.values()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        seconds = time.monotonic() - self._started
        hits, samples, clips, *losses = sums.tolist()
        return PassResult(
            losses={tower: loss / max(samples, 1) for tower, loss in zip(self._losses, losses, strict=True)},
            top1=hits / max(samples, 1),
            samples=round(samples),
            seconds=seconds,
            data_wait=self._waited / max(seconds, 1e-9),
            step_losses=tuple(step_losses),
            skipped_steps=skipped_steps,
            decoded=round(clips),
        )
