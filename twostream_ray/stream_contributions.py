"""Feature attribution by stream: contributions to a class's logit by integrated gradients, exact sums, Shapley values.

What is explained is a class's relative logit: its logit, averaged over the towers, less the mean logit of its data
set's classes, as softmax depends on nothing else.

Axes: N samples, S streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.errors import CheckpointError
from twostream_ray.models.build import Network

COMPLETENESS = 0.01
"""Tolerance of completeness: relative difference between the sum of contributions and the total."""

_ADDITIVE = 1e-4
"""Interactions below this share of the largest contribution are rounding errors."""
_FIRST_INTERVALS = 8
_MOST_GRADIENTS = 512
_NUMBERS_AT_ONCE = 2_000_000
"""Maximum number of input values per batch of gradients."""


class Sample(NamedTuple):
    """Normalised network inputs (1, T, 3, H, W) and (1, T, 2L, H, W); zeros are mean RGB and no motion.

    A stream that the network does not need is None.
    """

    rgb: Tensor | None
    flow: Tensor | None

    def streams(self) -> dict[str, Tensor]:
        """The available streams, by name of their tower."""
        both = {"spatial": self.rgb, "temporal": self.flow}
        return {name: frames for name, frames in both.items() if frames is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamContributions:
    """Decomposition of a class's relative logit into contributions of the streams."""

    logit: float
    """The relative logit of what was shown."""
    baseline: float
    """The relative logit of mean RGB and no motion; of other clips, the mean of theirs."""
    by_stream: dict[str, float]
    """What `spatial` and `temporal` add to the baseline, in logits; signed."""
    method: Literal["exact", "integrated gradients", "shapley"]
    """exact: the streams' contributions are added up and nothing else, as in late fusion; shapley: from other clips."""
    gap: float
    """How far baseline and contributions are from the logit, as a share of the difference of the two."""

    @property
    def shares(self) -> dict[str, float]:
        """Of what the streams move the logit, up or down, in [0, 1]; they add up to 1 unless nothing moves it."""
        moved = sum(map(abs, self.by_stream.values()))
        return {name: abs(value) / moved if moved else 0.0 for name, value in self.by_stream.items()}

    @property
    def is_complete(self) -> bool:
        """Whether the contributions add up to within 1 %."""
        return self.gap <= COMPLETENESS


def relative_logits(network: Network, sample: Sample, *, class_index: int) -> Tensor:
    """The class's logit, mean over the towers, less the mean logit of its data set's classes: (N,)."""
    logits = torch.stack(list(network(*sample).values())).mean(dim=0)
    stops = np.cumsum(network.head_classes)
    head = int(np.searchsorted(stops, class_index, side="right"))
    return logits[:, class_index] - network.split_heads(logits)[head].mean(dim=1)


def stream_contributions(network: Network, sample: Sample, *, class_index: int) -> StreamContributions:
    """Contribution of each stream to a class's relative logit, relative to mean RGB and no motion.

    Exact where the streams' effects add up, as in late fusion and in sum fusion below layers that are linear; else
    integrated gradients along the straight line between the two (Sundararajan et al. 2017).

    Raises:
        CheckpointError: the network's scores are not finite.
    """
    streams = detached(sample)

    def logit_of(*shown: str) -> float:
        with torch.no_grad():
            frames = {name: frames if name in shown else torch.zeros_like(frames) for name, frames in streams.items()}
            return float(relative_logits(network, sample_of(frames), class_index=class_index))

    baseline, logit = logit_of(), logit_of(*streams)
    if not np.isfinite([baseline, logit]).all():
        raise CheckpointError("the model's scores are not finite: use another version of it")
    by_stream = {name: logit_of(name) - baseline for name in streams}
    interaction = logit - baseline - sum(by_stream.values())
    method: Literal["exact", "integrated gradients", "shapley"] = "exact"
    if abs(interaction) > _ADDITIVE * max(map(abs, by_stream.values())):
        method = "integrated gradients"
        by_stream = _integrated_gradients(network, streams, class_index=class_index, ends=(baseline, logit))
    gap = _gap(logit - baseline, by_stream)
    return StreamContributions(logit=logit, baseline=baseline, by_stream=by_stream, method=method, gap=gap)


def shapley_contributions(
    network: Network, sample: Sample, references: Sequence[Sample], *, class_index: int
) -> StreamContributions:
    """Contribution of each stream to a class's relative logit, relative to other clips.

    Shapley values of the streams (Lundberg and Lee 2017), mean over the references: by how much the logit rises when a
    stream takes the place of a reference's, once beside the reference's other stream and once beside the sample's own.
    They add up exactly. No network has been trained on mean RGB without motion: from there, a share also holds what any
    picture and any motion at all do to a class.

    Args:
        network: in evaluation mode.
        sample: one sample.
        references: samples of its shape of other clips, at least one.
        class_index: whose logit.

    Raises:
        CheckpointError: the network's scores are not finite.
    """
    streams = detached(sample)
    added = dict.fromkeys(streams, 0.0)
    baseline = 0.0
    with torch.no_grad():
        logit = float(relative_logits(network, sample, class_index=class_index))
        for reference in references:
            others = reference.streams()
            before = float(relative_logits(network, reference, class_index=class_index))
            baseline += before / len(references)
            entered = {
                name: float(relative_logits(network, sample_of(others | {name: frames}), class_index=class_index))
                for name, frames in streams.items()
            }
            for name in streams:
                # Of two streams, the sample without one is the reference with the other.
                without = next((value for other, value in entered.items() if other != name), before)
                added[name] += (entered[name] - before + logit - without) / 2 / len(references)
    if not np.isfinite([baseline, logit, *added.values()]).all():
        raise CheckpointError("the model's scores are not finite: use another version of it")
    return StreamContributions(
        logit=logit,
        baseline=baseline,
        by_stream=added,
        method="shapley",
        gap=_gap(logit - baseline, added),
    )


def _gap(change: float, by_stream: dict[str, float]) -> float:
    return abs(change - sum(by_stream.values())) / max(abs(change), torch.finfo(torch.float32).tiny)


class _Interval(NamedTuple):
    """An interval of the line from baseline (0) to sample (1), evaluated at its midpoint."""

    start: float
    stop: float
    ends: tuple[float, float]
    middle: float
    """Values there."""
    added: NDArray[np.float64]
    """(S,) by the midpoint rule."""

    @property
    def gap(self) -> float:
        """Error of the midpoint rule against the difference of the end values."""
        return abs(float(self.added.sum()) - (self.ends[1] - self.ends[0]))


def _integrated_gradients(
    network: Network, streams: dict[str, Tensor], *, class_index: int, ends: tuple[float, float]
) -> dict[str, float]:
    """Adaptive midpoint rule: intervals with the largest error are halved.

    ReLU networks are piecewise smooth along the line, so this needs far fewer gradients than equal steps.
    """

    def evaluated(cuts: Sequence[tuple[float, float, tuple[float, float]]]) -> list[_Interval]:
        middles = [(start + stop) / 2 for start, stop, _ in cuts]
        values, slopes = _along_line(network, streams, middles, class_index=class_index)
        return [
            _Interval(start, stop, between, value, slope * (stop - start))
            for (start, stop, between), value, slope in zip(cuts, values, slopes, strict=True)
        ]

    knots = np.linspace(0, 1, _FIRST_INTERVALS + 1).tolist()
    values = [ends[0], *_along_line(network, streams, knots[1:-1], class_index=class_index)[0], ends[1]]
    intervals = evaluated([(*knots[n : n + 2], (values[n], values[n + 1])) for n in range(_FIRST_INTERVALS)])
    computed = 2 * _FIRST_INTERVALS
    while computed < _MOST_GRADIENTS and not _is_fine(intervals, change=abs(ends[1] - ends[0])):
        mean_gap = sum(interval.gap for interval in intervals) / len(intervals)
        fine = [interval for interval in intervals if interval.gap < mean_gap]
        halves = []
        for interval in intervals:
            if interval.gap >= mean_gap:
                middle = (interval.start + interval.stop) / 2
                halves.append((interval.start, middle, (interval.ends[0], interval.middle)))
                halves.append((middle, interval.stop, (interval.middle, interval.ends[1])))
        intervals = fine + evaluated(halves)
        computed += len(halves)
    added = np.sum([interval.added for interval in intervals], axis=0)
    return dict(zip(streams, added.tolist(), strict=True))


def _is_fine(intervals: Sequence[_Interval], *, change: float) -> bool:
    """Whether the sum is complete, and not just because errors of intervals cancel."""
    added = np.sum([interval.added for interval in intervals], axis=0)
    gaps = np.array([interval.added.sum() - (interval.ends[1] - interval.ends[0]) for interval in intervals])
    return abs(gaps.sum()) <= COMPLETENESS / 2 * change and np.abs(gaps).sum() <= 5 * COMPLETENESS * np.abs(added).sum()


def _along_line(
    network: Network, streams: dict[str, Tensor], positions: Sequence[float], *, class_index: int
) -> tuple[list[float], list[NDArray[np.float64]]]:
    """Relative logits at positions of the line, and their slopes (S,) by each stream."""
    at_once = max(1, _NUMBERS_AT_ONCE // sum(frames.numel() for frames in streams.values()))
    values: list[float] = []
    slopes: list[NDArray[np.float64]] = []
    for first in range(0, len(positions), at_once):
        part = torch.tensor(positions[first : first + at_once])[:, None, None, None, None]
        shown = {name: (frames * part.to(frames)).requires_grad_() for name, frames in streams.items()}
        with torch.enable_grad():
            logits = relative_logits(network, sample_of(shown), class_index=class_index)
            gradients = torch.autograd.grad(logits.sum(), list(shown.values()))
        pairs = zip(gradients, streams.values(), strict=True)
        by_stream = [(gradient * frames).flatten(1).sum(dim=1) for gradient, frames in pairs]
        values += logits.tolist()
        slopes += list(torch.stack(by_stream, dim=1).double().cpu().numpy())
    return values, slopes


def mean_contributions(parts: Sequence[StreamContributions]) -> StreamContributions:
    """Mean contributions over several samples."""
    logit, baseline = (float(np.mean([getattr(part, name) for part in parts])) for name in ("logit", "baseline"))
    by_stream = {name: float(np.mean([part.by_stream[name] for part in parts])) for name in parts[0].by_stream}
    methods = {part.method for part in parts}
    return StreamContributions(
        logit=logit,
        baseline=baseline,
        by_stream=by_stream,
        method=methods.pop() if len(methods) == 1 else "integrated gradients",
        gap=_gap(logit - baseline, by_stream),
    )


def detached(sample: Sample) -> dict[str, Tensor]:
    """The streams of a sample, detached from the autograd graph."""
    return {name: frames.detach() for name, frames in sample.streams().items()}


def sample_of(streams: dict[str, Tensor]) -> Sample:
    """The sample of these streams."""
    return Sample(streams.get("spatial"), streams.get("temporal"))
