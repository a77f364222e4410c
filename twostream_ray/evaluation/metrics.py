"""How good scores are: top-k, mean class accuracy, confusion; scores of views and streams made into one (S&Z 2014).

S&Z 2014: Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", sec. 2 and 6.
Equal scores are ordered by class index, lowest first, so that every figure is the same on every machine.
Axes: N clips, V views of a clip, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.redaction import printable


def predicted_classes(scores: ArrayLike) -> NDArray[np.int64]:
    """Best class of each clip. Shape (N, K) -> (N,), values in [0, K)."""
    return np.asarray(np.argmax(np.asarray(scores), axis=1), dtype=np.int64)


def top_k_hits(scores: ArrayLike, labels: ArrayLike, *, k: int) -> NDArray[np.bool_]:
    """Whether the true class is among the k best. Shapes (N, K), (N,) -> (N,).

    Raises:
        TrainingError: no clip, shapes that do not go together, a label outside [0, K), a score that is not finite.
    """
    scores, labels = _checked(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    return np.asarray(ahead.sum(axis=1) < k)


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, *, k: int) -> float:
    """Share of clips whose true class is among the k best, in [0, 1]. Shapes (N, K), (N,); raises as top_k_hits."""
    return float(top_k_hits(scores, labels, k=k).mean())


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, *, num_classes: int) -> NDArray[np.int64]:
    """Clips counted by true class (row) and predicted class (column). Shapes (N,), (N,) -> (K, K)."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predictions)), 1)
    return matrix


def mean_class_accuracy(confusion: NDArray[np.int64]) -> float:
    """Mean of the classes' own accuracies, in [0, 1], over the classes that have at least one labelled clip.

    Classes that are only predicted do not count (MMAction2 counts them as zero, so its figure can be lower).
    Shape (K, K), rows are true classes.
    """
    clips = confusion.sum(axis=1)
    if not clips.any():
        raise TrainingError("mean class accuracy needs at least 1 labelled clip, got none")
    return float(np.mean(confusion.diagonal()[clips > 0] / clips[clips > 0]))


def own_head_first(scores: ArrayLike, labels: ArrayLike, *, head_classes: Sequence[int]) -> NDArray[np.float64]:
    """Scores in which the classes of other data sets rank behind all of the clip's own (multi-task, S&Z 2014, sec. 4).

    The data sets' classes lie one after the other in K, head_classes of each. Shapes (N, K), (N,) -> (N, K).
    """
    scores, head_of_class = np.asarray(scores, dtype=np.float64), np.repeat(np.arange(len(head_classes)), head_classes)
    own = head_of_class == head_of_class[np.asarray(labels)][:, None]
    behind = np.where(own, scores, np.inf).min(axis=1, keepdims=True) - 1
    return np.where(own, scores, behind)


def video_scores(
    view_scores: ArrayLike, *, clips: ArrayLike, views: ArrayLike, clip_ids: Sequence[str], num_views: int
) -> NDArray[np.float64]:
    """Score of each clip: the mean over its views (S&Z 2014, sec. 5, testing), whatever order the views came in.

    Args:
        view_scores: (S, K), one row for each view that was scored.
        clips: (S,) index of each row's clip in clip_ids.
        views: (S,) index of each row's view, in [0, num_views).
        clip_ids: the N clips that must be there.
        num_views: V, the views that each clip must have.

    Returns:
        (N, K) in the order of clip_ids.

    Raises:
        TrainingError: a view is missing, scored twice or not asked for.
    """
    rows = np.asarray(view_scores)
    clip_of_row, view_of_row = np.asarray(clips, dtype=np.int64), np.asarray(views, dtype=np.int64)
    if rows.ndim != 2 or clip_of_row.shape != (len(rows),) or view_of_row.shape != (len(rows),):
        raise TrainingError(
            f"wanted view scores (S, K) with clips (S,) and views (S,), got shapes {rows.shape}, {clip_of_row.shape} "
            f"and {view_of_row.shape}"
        )
    stray = (clip_of_row < 0) | (clip_of_row >= len(clip_ids)) | (view_of_row < 0) | (view_of_row >= num_views)
    if stray.any():
        row = int(np.argmax(stray))
        raise TrainingError(
            f"wanted scores of {len(clip_ids)} clips with {num_views} views each, got view {view_of_row[row]} of clip "
            f"number {clip_of_row[row]}"
        )
    index = clip_of_row * num_views + view_of_row
    times_scored = np.bincount(index, minlength=len(clip_ids) * num_views)
    wrong = np.flatnonzero(times_scored != 1)
    if wrong.size:
        clip, view = divmod(int(wrong[0]), num_views)
        raise TrainingError(
            f"{wrong.size} of {times_scored.size} views were not scored exactly once: view {view} of {clip_ids[clip]} "
            f"was scored {times_scored[wrong[0]]} times; evaluate again"
        )
    in_order = rows[np.argsort(index)].reshape(len(clip_ids), num_views, rows.shape[1])
    return np.asarray(in_order.mean(axis=1, dtype=np.float64))


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Class probabilities, each row adding up to 1. Shape (N, K) -> (N, K)."""
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def late_fusion(
    spatial: ArrayLike,
    temporal: ArrayLike,
    *,
    temporal_weight: float = 0.5,
    of: Literal["softmax", "logits"] = "softmax",
) -> NDArray[np.float64]:
    """Weighted mean of two streams' scores: (1 - weight) spatial + weight temporal (S&Z 2014, sec. 2, averaging).

    Shapes (N, K), (N, K) -> (N, K). "softmax" turns logits into probabilities first, as S&Z 2014 do; "logits" takes
    the scores as they are, as ST-ResNet (Feichtenhofer et al. 2016) and I3D (Carreira and Zisserman 2017) do.

    Raises:
        TrainingError: the shapes differ, or the weight is outside [0, 1].
    """
    spatial, temporal = np.asarray(spatial, dtype=np.float64), np.asarray(temporal, dtype=np.float64)
    if spatial.shape != temporal.shape:
        raise TrainingError(
            f"late fusion wants the same clips and classes from both streams, got spatial {spatial.shape} and "
            f"temporal {temporal.shape}"
        )
    if not 0 <= temporal_weight <= 1:
        raise TrainingError(f"temporal_weight must be from 0 to 1, got {temporal_weight}")
    if of == "softmax":
        spatial, temporal = softmax(spatial), softmax(temporal)
    return (1 - temporal_weight) * spatial + temporal_weight * temporal


def late_fusion_hits(
    spatial: ArrayLike,
    temporal: ArrayLike,
    labels: ArrayLike,
    *,
    temporal_weights: ArrayLike,
) -> NDArray[np.int64]:
    """Clips whose best class is right at each of many weights: what `late_fusion` of "logits" and `top_k_hits` give.

    It takes one sweep: a class that both streams put behind the true one is so at every weight, and is not fused.
    Shapes (N, K), (N, K), (N,), (W,) -> (W,), values in [0, N].

    Raises:
        TrainingError: as late_fusion and top_k_hits.
    """
    weights = np.asarray(temporal_weights, dtype=np.float64)
    for extreme in (weights.min(), weights.max()):
        late_fusion(np.asarray(spatial)[:1], np.asarray(temporal)[:1], temporal_weight=float(extreme), of="logits")
    spatial, labels = _checked(spatial, labels)
    temporal, _ = _checked(temporal, labels)
    spatial, temporal = spatial.astype(np.float64), temporal.astype(np.float64)
    rows = np.arange(len(labels))
    own_spatial, own_temporal = spatial[rows, labels][:, None], temporal[rows, labels][:, None]
    # Far enough behind that rounding cannot make the fused scores equal.
    slack = [1e-9 * np.abs(scores).max() for scores in (spatial, temporal)]
    rival = (spatial >= own_spatial - slack[0]) | (temporal >= own_temporal - slack[1])
    rival[rows, labels] = False
    clips, classes = np.nonzero(rival)
    pairs = np.stack([spatial[clips, classes], temporal[clips, classes]])
    own = np.stack([own_spatial[clips, 0], own_temporal[clips, 0]])
    before = classes < labels[clips]  # equal scores are ordered by class index
    hits = np.empty(len(weights), dtype=np.int64)
    for index, weight in enumerate(weights):
        fused, true = ((1 - weight) * values[0] + weight * values[1] for values in (pairs, own))
        beaten = (fused > true) | ((fused == true) & before)
        hits[index] = len(labels) - np.count_nonzero(np.bincount(clips[beaten], minlength=len(labels)))
    return hits


def svm_fusion(
    scores: Sequence[ArrayLike],
    *,
    fit_scores: Sequence[ArrayLike],
    fit_labels: ArrayLike,
    penalty: float = 1.0,
    of: Literal["softmax", "logits"] = "softmax",
) -> NDArray[np.float64]:
    """Decision values of a linear SVM on the streams' stacked, L2-normalised softmax scores (S&Z 2014, sec. 2).

    Fit it on clips the networks were not trained on, and not on those it is judged by. One class against the rest,
    squared hinge loss (liblinear).

    Args:
        scores: (N, K) of each stream, for the clips to judge.
        fit_scores: (M, K) of each stream, in the same order, for the clips to learn from.
        fit_labels: (M,) their true classes; every class must be among them.
        penalty: C, the weight of mistakes against the width of the margin; above 0 (the paper does not give it).
        of: "softmax" turns logits into probabilities first, "logits" takes the scores as they are, as in late_fusion.

    Returns:
        (N, K), higher is better; they are no probabilities.

    Raises:
        TrainingError: the streams' shapes differ, a class has no clip to learn from, or penalty is not above 0.
    """
    from sklearn.svm import LinearSVC

    if not penalty > 0:
        raise TrainingError(f"penalty must be more than 0, got {penalty}")
    learnt, judged = (_normalised(streams, of=of) for streams in (fit_scores, scores))
    num_classes = np.asarray(fit_scores[0]).shape[1]
    if learnt.shape[1] != judged.shape[1]:
        raise TrainingError(
            f"wanted scores of the same streams and classes for both sets, got {learnt.shape[1]} columns to learn from "
            f"and {judged.shape[1]} to judge"
        )
    _, labels = _checked(fit_scores[0], fit_labels)
    absent = np.setdiff1d(np.arange(num_classes), labels)
    if absent.size:
        raise TrainingError(
            f"an SVM needs clips of all {num_classes} classes to learn from, got none of {absent.size}, class "
            f"{absent[0]} first: fit on a larger split"
        )
    svm = LinearSVC(C=penalty, random_state=0).fit(learnt, labels)
    values = np.asarray(svm.decision_function(judged), dtype=np.float64)
    return np.stack([-values, values], axis=1) if values.ndim == 1 else values


def _normalised(streams: Sequence[ArrayLike], *, of: Literal["softmax", "logits"]) -> NDArray[np.float64]:
    """The streams' scores side by side, each stream's row of unit length; S x (N, K) -> (N, S K)."""
    arrays = [np.asarray(scores, dtype=np.float64) for scores in streams]
    if len({array.shape for array in arrays}) != 1:
        raise TrainingError(
            f"wanted the same clips and classes from every stream, got shapes {[array.shape for array in arrays]}"
        )
    if of == "softmax":
        arrays = [softmax(array) for array in arrays]
    lengths = (np.linalg.norm(array, axis=1, keepdims=True) for array in arrays)
    return np.concatenate([array / length for array, length in zip(arrays, lengths, strict=True)], axis=1)


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
    """What one network got right on one split."""

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
        """The clips that the figures speak of: "3783 of 3783 clips"."""
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
        """The figures in one line, then the num_rows weakest classes."""
        figures = [f"top-1 {self.top1:.2%}", f"mean class {self.mean_class:.2%}", self.coverage]
        if self.top5 is not None:
            figures.insert(1, f"top-5 {self.top5:.2%}")
        rows = [row for row in self.per_class() if row.num_clips]
        rows.sort(key=lambda row: row.num_correct / row.num_clips)
        width = max(len("class"), *(len(printable(row.name)) for row in rows[:num_rows]))
        lines = ["   ".join(figures), "", f"{'class':<{width}}  correct  of clips  accuracy  most often taken for"]
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
        TrainingError: as top_k_hits, or more clips than expected, or another number of classes.
    """
    scores, labels = _checked(scores, labels)
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


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise TrainingError(f"wanted scores (N, K) and labels (N,), got shapes {scores.shape} and {labels.shape}")
    if not scores.size:
        raise TrainingError(f"there is nothing to judge: wanted at least 1 clip and 1 class, got shape {scores.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise TrainingError(
            f"wanted whole labels from 0 to {scores.shape[1] - 1}, got {labels.dtype} from {labels.min()} "
            f"to {labels.max()}"
        )
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        raise TrainingError(
            f"wanted finite scores, got {scores[~finite][0].min()} in row {int(np.argmin(finite))} and "
            f"{int((~finite).sum())} rows like it: training has diverged; lower the learning rate"
        )
    return scores, labels.astype(np.int64)
