"""Classification report of a split: accuracies with intervals, confusion, calibration, the weakest classes.

Axes: N clips, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.calibration import NUM_BINS, Reliability, reliability
from twostream_ray.evaluation.intervals import Interval, MetricIntervals, metric_intervals, wilson_intervals
from twostream_ray.evaluation.metrics import (
    checked_scores,
    confusion_matrix,
    mean_class_accuracy,
    most_confused,
    own_head_first,
    predicted_classes,
    top_k_hits,
)
from twostream_ray.heads import Head, heads_of
from twostream_ray.redaction import printable

NUM_CONFUSED_PAIRS = 10
"""Number of confused class pairs in a report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """One row of the per-class table."""

    name: str
    """Name of the class."""

    num_clips: int
    """Clips of this class that were evaluated."""

    num_correct: int
    """Those of them whose best class is the true one."""

    taken_for: str | None
    """The most frequent wrong prediction for its clips; None if there is none."""

    interval: Interval
    """95 % Wilson interval of its accuracy, assuming independent clips (Wilson 1927)."""

    @property
    def accuracy(self) -> float | None:
        """Share of the class's clips that are right, in [0, 1]; none where it has no clip."""
        return self.num_correct / self.num_clips if self.num_clips else None

    def to_dict(self) -> dict[str, Any]:
        """The row in JSON's types."""
        return {
            "name": self.name,
            "num_clips": self.num_clips,
            "num_correct": self.num_correct,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "taken_for": self.taken_for,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """Clips of one class that were taken for another."""

    name: str
    """The true class."""

    taken_for: str
    """The class that they were taken for."""

    count: int
    """How many, at least 1."""

    num_clips: int
    """Of so many clips of the true class."""

    def sentence(self) -> str:
        """As in "12 of 40 clips of run were taken for walk"."""
        return (
            f"{self.count} of {self.num_clips} clips of {printable(self.name)} were taken for "
            f"{printable(self.taken_for)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadResult:
    """The metrics of one data set's clips, of a network that was trained on several; none where it has no clip."""

    name: str
    """Name of the data set."""

    n_evaluated: int
    """Its clips that were scored."""

    n_expected: int | None
    """Its clips in the split, those in quarantine among them; none where an earlier ingest did not count them apart."""

    top1: float | None
    """Share of its clips whose best class, of this data set, is the true one, in [0, 1]."""

    top5: float | None
    """Share of its clips whose true class is among the 5 best; none for 5 classes or fewer."""

    mean_class: float | None
    """Mean of the accuracies of its classes that have at least one evaluated clip, in [0, 1]."""

    intervals: tuple[MetricIntervals, ...] = ()
    """95 % intervals of these, over clips, and over groups where its clips have any."""

    @property
    def coverage(self) -> str:
        """The clips that the metrics are of: "1530 of 1530 clips"."""
        return _coverage(self.n_evaluated, self.n_expected)

    def to_dict(self) -> dict[str, Any]:
        """The metrics in JSON's types."""
        return {
            "name": self.name,
            "n_evaluated": self.n_evaluated,
            "n_expected": self.n_expected,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "intervals": [one.to_dict() for one in self.intervals],
        }

    def to_text(self) -> str:
        """The metrics in one line."""
        if self.top1 is None or self.mean_class is None:
            return f"no clip of it was scored, {self.coverage}"
        return _metrics(self.top1, self.top5, self.mean_class, self.coverage, self.intervals)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """Metrics of one network on one split."""

    n_evaluated: int
    """Clips that were scored; every share below is of these."""

    n_expected: int
    """Clips of the split, those in quarantine among them."""

    classes: tuple[str, ...]
    """K class names."""

    top1: float
    """Share of clips whose best class is the true one, in [0, 1]."""

    top5: float | None
    """Share of clips whose true class is among the 5 best; none where a data set has 5 classes or fewer: always 1."""

    mean_class: float
    """Mean of the accuracies of the classes that have at least one evaluated clip, in [0, 1]."""

    confusion: NDArray[np.int64]
    """(K, K) clips by true class (row) and predicted class (column)."""

    heads: tuple[HeadResult, ...] = ()
    """The metrics of each data set, of a network that was trained on several; () where there is one."""

    intervals: tuple[MetricIntervals, ...] = ()
    """95 % intervals of top-1, top-5 and mean class accuracy, over clips, and over groups where clips have any."""

    reliability: Reliability | None = None
    """Probabilities against accuracy; none where only scores are known."""

    @property
    def coverage(self) -> str:
        """The clips that the metrics are of: "3783 of 3783 clips"."""
        return _coverage(self.n_evaluated, self.n_expected)

    def per_class(self) -> tuple[ClassResult, ...]:
        """The per-class table, in the order of the classes."""
        clips, right = self.confusion.sum(axis=1), self.confusion.diagonal()
        ends = wilson_intervals(right, clips).tolist()
        taken_for = {true: taken for true, taken, _ in reversed(most_confused(self.confusion))}
        return tuple(
            ClassResult(
                name=name,
                num_clips=int(clips[label]),
                num_correct=int(right[label]),
                taken_for=self.classes[taken_for[label]] if label in taken_for else None,
                interval=Interval(*ends[label]),
            )
            for label, name in enumerate(self.classes)
        )

    def most_confused(self, *, num_pairs: int = NUM_CONFUSED_PAIRS) -> tuple[ConfusedPair, ...]:
        """The most frequent mistakes, most clips first."""
        clips = self.confusion.sum(axis=1)
        return tuple(
            ConfusedPair(
                name=self.classes[true], taken_for=self.classes[taken], count=count, num_clips=int(clips[true])
            )
            for true, taken, count in most_confused(self.confusion, num_pairs=num_pairs)
        )

    def mean_class_definition(self) -> str:
        """What mean class accuracy is here, in words."""
        num_classes = int((self.confusion.sum(axis=1) > 0).sum())
        return f"mean of the accuracies of the {num_classes} of {len(self.classes)} classes that have a clip here"

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {
            "n_evaluated": self.n_evaluated,
            "n_expected": self.n_expected,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "mean_class_definition": self.mean_class_definition(),
            "intervals": [one.to_dict() for one in self.intervals],
            "calibration": None if self.reliability is None else self.reliability.to_dict(),
            "most_confused": [asdict(pair) for pair in self.most_confused()],
            "per_class": [row.to_dict() for row in self.per_class()],
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "heads": [head.to_dict() for head in self.heads],
        }

    def metrics_text(self) -> list[str]:
        """Metrics, intervals and definitions, in lines: of all clips first, then of each data set."""
        names = max((len(printable(head.name)) for head in self.heads), default=0)
        of_heads = [f"{printable(head.name):<{names}}   {head.to_text()}" for head in self.heads]
        lines = [_metrics(self.top1, self.top5, self.mean_class, self.coverage, self.intervals), *of_heads]
        for one in self.intervals:
            rough = "" if one.is_trusted else f"; {one.num_units} are few: take it as a rough one"
            if one.over == "clips":
                lines.append(f"in brackets: 95% interval, bootstrap over clips{rough}")
            else:
                ends = [f"top-1 {one.top1.to_text()}", f"mean class {one.mean_class.to_text()}"]
                if one.top5 is not None:
                    ends.insert(1, f"top-5 {one.top5.to_text()}")
                lines.append(
                    f"over {one.num_units} groups (clips of one source count together): {'   '.join(ends)}{rough}"
                )
        lines.append(f"mean class: {self.mean_class_definition()}")
        if self.reliability is not None:
            ece = self.reliability.ece
            lines.append(f"ECE {ece:.2%}: best class's probability against how often it is right, {NUM_BINS} bins")
        return lines

    def to_text(self, *, num_rows: int = 10) -> str:
        """Metrics and definitions; then the num_rows weakest classes and the most confused pairs."""
        rows = [row for row in self.per_class() if row.num_clips]
        rows.sort(key=lambda row: row.num_correct / row.num_clips)
        width = max(len("class"), *(len(printable(row.name)) for row in rows[:num_rows]))
        lines = [*self.metrics_text(), "", f"{'class':<{width}}  correct  of clips  accuracy  most often taken for"]
        lines += [
            f"{printable(row.name):<{width}}  {row.num_correct:>7}  {row.num_clips:>8}"
            f"  {row.num_correct / row.num_clips:>8.1%}  {printable(row.taken_for or '-')}"
            for row in rows[:num_rows]
        ]
        if len(rows) > num_rows:
            lines.append(f"({len(rows) - num_rows} stronger classes follow)")
        if pairs := self.most_confused():
            lines += ["", "most confused:", *(pair.sentence() for pair in pairs)]
        return "\n".join(lines)


def report_on(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    classes: Sequence[str],
    n_expected: int,
    heads: Sequence[Head] = (),
    expected_by_head: Sequence[int | None] = (),
    probabilities: ArrayLike | None = None,
    groups: Sequence[str | None] | None = None,
) -> Report:
    """Evaluate the scores of a split's clips; with several data sets, each clip within the classes of its own.

    Args:
        scores: (N, K) logits or probabilities.
        labels: (N,) true classes, in [0, K).
        classes: K class names.
        n_expected: clips of the split; at least N, more where some are in quarantine.
        heads: the data sets; () is one.
        expected_by_head: n_expected of each data set, None where that is not known.
        probabilities: (N, K) of the same clips, for their calibration; none: it is not computed.
        groups: (N,) person, scene or source of each clip, or none where it has none; intervals are then also over
            these. Where no two clips have one in common they say nothing.

    Raises:
        TrainingError: as checked_scores, or more clips than expected, or another number of classes or groups.
    """
    scores, labels = checked_scores(scores, labels)
    if scores.shape[1] != len(classes):
        raise TrainingError(f"wanted scores of {len(classes)} classes, got {scores.shape[1]}")
    if len(scores) > n_expected:
        raise TrainingError(f"the split has {n_expected} clips, got scores of {len(scores)}: some were scored twice")
    of_heads: tuple[HeadResult, ...] = ()
    sizes = [head.stop - head.start for head in heads] or [len(classes)]
    if groups is not None and len(groups) != len(scores):
        raise TrainingError(f"wanted the group of each of {len(scores)} clips, got {len(groups)}")
    known = None if groups is None else _shared_groups(groups)
    if len(sizes) > 1:
        scores = own_head_first(scores, labels, head_classes=sizes)
        of_heads = tuple(
            _on_head(scores, labels, head, n_expected=expected, groups=known)
            for head, expected in zip(heads, expected_by_head, strict=True)
        )
    judged = _judge(scores, labels, num_classes=len(classes), with_top5=min(sizes) > 5, groups=known)
    return Report(
        n_evaluated=len(scores),
        n_expected=n_expected,
        classes=tuple(classes),
        heads=of_heads,
        confusion=confusion_matrix(labels, predicted_classes(scores), num_classes=len(classes)),
        reliability=(
            None
            if probabilities is None
            else reliability(probabilities, labels, heads=heads or heads_of(classes, sizes))
        ),
        **judged,
    )


def _on_head(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    head: Head,
    *,
    n_expected: int | None,
    groups: NDArray[np.int64] | None,
) -> HeadResult:
    rows = np.flatnonzero((labels >= head.start) & (labels < head.stop))
    own, own_labels, num_classes = scores[rows, head.columns], labels[rows] - head.start, head.stop - head.start
    if not len(rows):
        return HeadResult(name=head.name, n_evaluated=0, n_expected=n_expected, top1=None, top5=None, mean_class=None)
    judged = _judge(
        own,
        own_labels,
        num_classes=num_classes,
        with_top5=num_classes > 5,
        groups=None if groups is None else groups[rows],
    )
    return HeadResult(name=head.name, n_evaluated=len(rows), n_expected=n_expected, **judged)


def _judge(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    num_classes: int,
    with_top5: bool,
    groups: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """Metrics and their intervals, by the names of a report's fields."""
    top1 = top_k_hits(scores, labels, k=1)
    top5 = top_k_hits(scores, labels, k=5) if with_top5 else None
    drawn = [None] if groups is None or len(np.unique(groups)) == len(groups) else [None, groups]
    return {
        "top1": float(top1.mean()),
        "top5": None if top5 is None else float(top5.mean()),
        "mean_class": mean_class_accuracy(confusion_matrix(labels, predicted_classes(scores), num_classes=num_classes)),
        "intervals": tuple(
            metric_intervals(top1, top5, labels, num_classes=num_classes, groups=units) for units in drawn
        ),
    }


def _shared_groups(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """Numbers of groups; a clip without one is a group of its own."""
    numbers: dict[str | int, int] = {}
    names = [clip if name is None else name for clip, name in enumerate(groups)]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _coverage(n_evaluated: int, n_expected: int | None) -> str:
    if n_expected is None:
        return f"{n_evaluated} clips and those in quarantine, which are not counted by data set"
    return f"{n_evaluated} of {n_expected} clips"


def _metrics(
    top1: float, top5: float | None, mean_class: float, coverage: str, intervals: Sequence[MetricIntervals]
) -> str:
    """As in "top-1 88.08% [87.0, 89.1]   mean class 88.17% [87.2, 89.2]   3783 of 3783 clips"."""
    over_clips = next(iter(intervals), None)
    words = []
    for name, field, value in (
        ("top-1", "top1", top1),
        ("top-5", "top5", top5),
        ("mean class", "mean_class", mean_class),
    ):
        interval: Interval | None = None if over_clips is None else getattr(over_clips, field)
        if value is not None:
            words.append(f"{name} {value:.2%}" + ("" if interval is None else f" {interval.to_text()}"))
    return "   ".join([*words, coverage])
