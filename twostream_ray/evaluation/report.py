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
    predicted_classes,
    top_k_accuracy,
)
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
    """Share of clips whose true class is among the 5 best; none for K <= 5, where it would always be 1."""

    mean_class: float
    """Mean of the accuracies of the classes that have at least one evaluated clip, in [0, 1]."""

    confusion: NDArray[np.int64]
    """(K, K) clips by true class (row) and predicted class (column)."""

    @property
    def coverage(self) -> str:
        """The clips that the metrics are of: "3783 of 3783 clips"."""
        return f"{self.n_evaluated} of {self.n_expected} clips"

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
        }

    def to_text(self, *, num_rows: int = 10) -> str:
        """The metrics in one line, then the num_rows weakest classes."""
        metrics = [f"top-1 {self.top1:.2%}", f"mean class {self.mean_class:.2%}", self.coverage]
        if self.top5 is not None:
            metrics.insert(1, f"top-5 {self.top5:.2%}")
        rows = [row for row in self.per_class() if row.num_clips]
        rows.sort(key=lambda row: row.num_correct / row.num_clips)
        width = max(len("class"), *(len(printable(row.name)) for row in rows[:num_rows]))
        lines = ["   ".join(metrics), "", f"{'class':<{width}}  correct  of clips  accuracy  most often taken for"]
        lines += [
            f"{printable(row.name):<{width}}  {row.num_correct:>7}  {row.num_clips:>8}"
            f"  {row.num_correct / row.num_clips:>8.1%}  {printable(row.taken_for or '-')}"
            for row in rows[:num_rows]
        ]
        if len(rows) > num_rows:
            lines.append(f"({len(rows) - num_rows} stronger classes follow)")
        return "\n".join(lines)


def report_on(scores: ArrayLike, labels: ArrayLike, *, classes: Sequence[str], n_expected: int) -> Report:
    """Judge the scores of a split's clips.

    Args:
        scores: (N, K) logits or probabilities.
        labels: (N,) true classes, in [0, K).
        classes: K class names.
        n_expected: clips of the split; at least N, more where some are in quarantine.

    Raises:
        TrainingError: as checked_scores, or more clips than expected, or another number of classes.
    """
    scores, labels = checked_scores(scores, labels)
    if scores.shape[1] != len(classes):
        raise TrainingError(f"wanted scores of {len(classes)} classes, got {scores.shape[1]}")
    if len(scores) > n_expected:
        raise TrainingError(f"the split has {n_expected} clips, got scores of {len(scores)}: some were scored twice")
    confusion = confusion_matrix(labels, predicted_classes(scores), num_classes=len(classes))
    return Report(
        n_evaluated=len(scores),
        n_expected=n_expected,
        classes=tuple(classes),
        top1=top_k_accuracy(scores, labels, k=1),
        top5=top_k_accuracy(scores, labels, k=5) if len(classes) > 5 else None,
        mean_class=mean_class_accuracy(confusion),
        confusion=confusion,
    )
