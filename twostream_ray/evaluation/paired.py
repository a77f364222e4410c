"""Paired comparison of two models on the same clips: discordant clips, McNemar's exact test, paired bootstrap.

Two accuracies with overlapping intervals may still differ for certain: both are of the same clips, and only those that
one of the two gets right tell them apart (McNemar 1947; Dietterich 1998). Axes: N clips, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.intervals import FEWEST_UNITS, Interval, Unit, bootstrap_intervals


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceIntervals:
    """95 % paired-bootstrap intervals of the second model's improvement over the first."""

    over: Unit
    """The unit that is assumed independent and resampled."""
    num_units: int
    """Number of units."""
    top1: Interval
    """Of the difference of the top-1 accuracies, in [-1, 1]."""
    mean_class: Interval
    """Of the difference of the mean class accuracies, in [-1, 1]."""

    @property
    def is_trusted(self) -> bool:
        """Whether there are enough units for nominal coverage."""
        return self.num_units >= FEWEST_UNITS

    def to_dict(self) -> dict[str, Any]:
        """The intervals in JSON's types."""
        return {
            "over": self.over,
            "num_units": self.num_units,
            "trusted": self.is_trusted,
            "top1": list(self.top1),
            "mean_class": list(self.mean_class),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassDifference:
    """Results of two models on one class's clips."""

    label: int
    """The class, in [0, K)."""
    num_clips: int
    """Its clips, at least 1."""
    first_right: int
    """Of these, right by the first model."""
    second_right: int
    """Of these, right by the second."""

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first, in [-1, 1]."""
        return (self.second_right - self.first_right) / self.num_clips


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairedComparison:
    """A second model against a first one on the same clips."""

    num_clips: int
    """N."""
    both_right: int
    """Clips that both get right."""
    only_first: int
    """Clips that the first alone gets right."""
    only_second: int
    """Clips that the second alone gets right."""
    mcnemar_p: float
    """p-value of McNemar's test on the discordant clips (exact, two-sided)."""
    first_top1: float
    """Accuracy of the first, in [0, 1]."""
    second_top1: float
    """Accuracy of the second, in [0, 1]."""
    first_mean_class: float
    """Mean class accuracy of the first, over the classes that have clips."""
    second_mean_class: float
    """Mean class accuracy of the second."""
    over_clips: DifferenceIntervals
    """Intervals of second less first."""
    over_groups: DifferenceIntervals | None
    """The same by groups; none where clips have none."""
    classes: tuple[ClassDifference, ...]
    """Of the classes that have clips, in their order."""

    @property
    def both_wrong(self) -> int:
        """Clips that neither gets right."""
        return self.num_clips - self.both_right - self.only_first - self.only_second

    @property
    def difference(self) -> float:
        """Top-1 of the second less that of the first, in [-1, 1]."""
        return self.second_top1 - self.first_top1


def compare_hits(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    *,
    num_classes: int,
    groups: Sequence[str] | NDArray[np.integer] | None = None,
) -> PairedComparison:
    """Compare which clips two models get right.

    McNemar's test takes clips for independent; where they come in groups, the interval over groups is the one to trust.

    Args:
        first: (N,) whether the first model is right.
        second: (N,) whether the second is.
        labels: (N,) true classes, in [0, K).
        num_classes: K.
        groups: (N,) each clip's group.

    Raises:
        TrainingError: no clip, or other numbers of them.
    """
    first, second = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    labels = np.asarray(labels, dtype=np.int64)
    if not len(labels) or first.shape != labels.shape or second.shape != labels.shape:
        raise TrainingError(
            f"wanted hits of two models on the same clips, at least 1, got {first.shape}, {second.shape} and labels "
            f"{labels.shape}"
        )
    counts = np.bincount(4 * labels + 2 * first + second, minlength=4 * num_classes).reshape(1, num_classes, 4)
    clips, right = counts[0].sum(axis=1), _right(counts.astype(np.float64))[0]
    top1, mean_class = _metrics(counts.astype(np.float64))[0].T
    _, only_second, only_first, both = (int(count) for count in counts[0].sum(axis=0))
    grouped = None if groups is None or len(np.unique(groups)) == len(labels) else groups
    return PairedComparison(
        num_clips=len(labels),
        both_right=both,
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=mcnemar_p(only_first, only_second),
        first_top1=float(top1[0]),
        second_top1=float(top1[1]),
        first_mean_class=float(mean_class[0]),
        second_mean_class=float(mean_class[1]),
        over_clips=_intervals(first, second, labels, num_classes=num_classes, groups=None),
        over_groups=(
            None if grouped is None else _intervals(first, second, labels, num_classes=num_classes, groups=grouped)
        ),
        classes=tuple(
            ClassDifference(
                label=int(label),
                num_clips=int(clips[label]),
                first_right=int(right[0, label]),
                second_right=int(right[1, label]),
            )
            for label in np.flatnonzero(clips)
        ),
    )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: a fair coin's, for each clip that one model alone gets right."""
    from scipy import stats

    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def _intervals(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    num_classes: int,
    groups: Sequence[str] | NDArray[np.integer] | None,
) -> DifferenceIntervals:
    def differences(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        by_model = _metrics(counts.reshape(len(counts), num_classes, 4))
        return by_model[:, 1] - by_model[:, 0]

    outcomes = 4 * labels + 2 * first + second
    top1, mean_class = bootstrap_intervals(
        outcomes, differences, num_outcomes=4 * num_classes, bounds=(-1, 1), groups=groups
    )
    return DifferenceIntervals(
        over="clips" if groups is None else "groups",
        num_units=len(labels) if groups is None else len(np.unique(groups)),
        top1=top1,
        mean_class=mean_class,
    )


def _right(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clips of a class that each model gets right, of counts (neither, second, first, both); (B, K, 4) -> (B, 2, K)."""
    return np.stack([counts[..., 2] + counts[..., 3], counts[..., 1] + counts[..., 3]], axis=1)


def _metrics(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Top-1 and mean class accuracy of each model: (B, K, 4) -> (B, 2, 2)."""
    clips, right = counts.sum(axis=2)[:, None], _right(counts)
    has_clips = clips > 0
    mean_class = (right / np.where(has_clips, clips, 1)).sum(axis=2) / has_clips.sum(axis=2)
    return np.stack([right.sum(axis=2) / clips.sum(axis=2), mean_class], axis=2)
