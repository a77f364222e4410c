"""Classification report of a split: accuracies, confusion matrix, table of the weakest classes.

Axes: N clips, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.metrics import (
    checked_scores,
    confusion_matrix,
    mean_class_accuracy,
    own_head_first,
    predicted_classes,
    top_k_accuracy,
)
from twostream_ray.heads import Head
from twostream_ray.redaction import printable


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
    """The wrong class that most of its clips were taken for; none where no clip was."""

    @property
    def accuracy(self) -> float | None:
        """Share of the class's clips that are right, in [0, 1]; none where it has no clip."""
        return self.num_correct / self.num_clips if self.num_clips else None


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
        }

    def to_text(self) -> str:
        """The metrics in one line."""
        if self.top1 is None or self.mean_class is None:
            return f"no clip of it was scored, {self.coverage}"
        return _metrics(self.top1, self.top5, self.mean_class, self.coverage)


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

    @property
    def coverage(self) -> str:
        """The clips that the metrics are of: "3783 of 3783 clips"."""
        return _coverage(self.n_evaluated, self.n_expected)

    def per_class(self) -> tuple[ClassResult, ...]:
        """The per-class table, in the order of the classes."""
        rows = []
        for label, name in enumerate(self.classes):
            wrong = self.confusion[label].copy()
            wrong[label] = 0
            rows.append(
                ClassResult(
                    name=name,
                    num_clips=int(self.confusion[label].sum()),
                    num_correct=int(self.confusion[label, label]),
                    taken_for=self.classes[int(wrong.argmax())] if wrong.any() else None,
                )
            )
        return tuple(rows)

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {
            "n_evaluated": self.n_evaluated,
            "n_expected": self.n_expected,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "heads": [head.to_dict() for head in self.heads],
        }

    def to_text(self, *, num_rows: int = 10) -> str:
        """The metrics in one line, and in one of each data set; then the num_rows weakest classes."""
        names = max((len(printable(head.name)) for head in self.heads), default=0)
        of_heads = [f"{printable(head.name):<{names}}   {head.to_text()}" for head in self.heads]
        metrics = [_metrics(self.top1, self.top5, self.mean_class, self.coverage), *of_heads]
        rows = [row for row in self.per_class() if row.num_clips]
        rows.sort(key=lambda row: row.num_correct / row.num_clips)
        width = max(len("class"), *(len(printable(row.name)) for row in rows[:num_rows]))
        lines = [*metrics, "", f"{'class':<{width}}  correct  of clips  accuracy  most often taken for"]
        lines += [
            f"{printable(row.name):<{width}}  {row.num_correct:>7}  {row.num_clips:>8}"
            f"  {row.num_correct / row.num_clips:>8.1%}  {printable(row.taken_for or '-')}"
            for row in rows[:num_rows]
        ]
        if len(rows) > num_rows:
            lines.append(f"({len(rows) - num_rows} stronger classes follow)")
        return "\n".join(lines)


def report_on(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    classes: Sequence[str],
    n_expected: int,
    heads: Sequence[Head] = (),
    expected_by_head: Sequence[int | None] = (),
) -> Report:
    """Judge the scores of a split's clips; with several data sets, each clip by the classes of its own.

    Args:
        scores: (N, K) logits or probabilities.
        labels: (N,) true classes, in [0, K).
        classes: K class names.
        n_expected: clips of the split; at least N, more where some are in quarantine.
        heads: the data sets; () is one.
        expected_by_head: n_expected of each data set, None where that is not known.

    Raises:
        TrainingError: as checked_scores, or more clips than expected, or another number of classes.
    """
    scores, labels = checked_scores(scores, labels)
    if scores.shape[1] != len(classes):
        raise TrainingError(f"wanted scores of {len(classes)} classes, got {scores.shape[1]}")
    if len(scores) > n_expected:
        raise TrainingError(f"the split has {n_expected} clips, got scores of {len(scores)}: some were scored twice")
    of_heads: tuple[HeadResult, ...] = ()
    sizes = [head.stop - head.start for head in heads] or [len(classes)]
    if len(sizes) > 1:
        scores = own_head_first(scores, labels, head_classes=sizes)
        of_heads = tuple(
            _on_head(scores, labels, head, n_expected=expected)
            for head, expected in zip(heads, expected_by_head, strict=True)
        )
    confusion = confusion_matrix(labels, predicted_classes(scores), num_classes=len(classes))
    return Report(
        n_evaluated=len(scores),
        n_expected=n_expected,
        classes=tuple(classes),
        top1=top_k_accuracy(scores, labels, k=1),
        top5=top_k_accuracy(scores, labels, k=5) if min(sizes) > 5 else None,
        mean_class=mean_class_accuracy(confusion),
        confusion=confusion,
        heads=of_heads,
    )


def _on_head(scores: NDArray[Any], labels: NDArray[np.int64], head: Head, *, n_expected: int | None) -> HeadResult:
    rows = np.flatnonzero((labels >= head.start) & (labels < head.stop))
    own, own_labels, num_classes = scores[rows, head.columns], labels[rows] - head.start, head.stop - head.start
    if not len(rows):
        return HeadResult(name=head.name, n_evaluated=0, n_expected=n_expected, top1=None, top5=None, mean_class=None)
    confusion = confusion_matrix(own_labels, predicted_classes(own), num_classes=num_classes)
    return HeadResult(
        name=head.name,
        n_evaluated=len(rows),
        n_expected=n_expected,
        top1=top_k_accuracy(own, own_labels, k=1),
        top5=top_k_accuracy(own, own_labels, k=5) if num_classes > 5 else None,
        mean_class=mean_class_accuracy(confusion),
    )


def _coverage(n_evaluated: int, n_expected: int | None) -> str:
    if n_expected is None:
        return f"{n_evaluated} clips and those in quarantine, which are not counted by data set"
    return f"{n_evaluated} of {n_expected} clips"


def _metrics(top1: float, top5: float | None, mean_class: float, coverage: str) -> str:
    metrics = [f"top-1 {top1:.2%}", f"mean class {mean_class:.2%}", coverage]
    if top5 is not None:
        metrics.insert(1, f"top-5 {top5:.2%}")
    return "   ".join(metrics)
