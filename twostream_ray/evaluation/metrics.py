"""Classification metrics: top-k accuracy, mean class accuracy, confusion matrix.

Equal scores are ordered by class index, lowest first, so that every number is the same on every machine.
Axes: N clips, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError


def predicted_classes(scores: ArrayLike) -> NDArray[np.int64]:
    """Best class of each clip. Shape (N, K) -> (N,), values in [0, K)."""
    return np.asarray(np.argmax(np.asarray(scores), axis=1), dtype=np.int64)


def top_k_hits(scores: ArrayLike, labels: ArrayLike, *, k: int) -> NDArray[np.bool_]:
    """Whether the true class is among the k best. Shapes (N, K), (N,) -> (N,).

    Raises:
        TrainingError: as checked_scores.
    """
    scores, labels = checked_scores(scores, labels)
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

    Classes that are only predicted do not count (MMAction2 counts them as zero, so its number can be lower).
    Shape (K, K), rows are true classes.
    """
    clips = confusion.sum(axis=1)
    if not clips.any():
        raise TrainingError("mean class accuracy needs at least 1 labelled clip, got none")
    return float(np.mean(confusion.diagonal()[clips > 0] / clips[clips > 0]))


def most_confused(confusion: NDArray[np.int64], *, num_pairs: int | None = None) -> list[tuple[int, int, int]]:
    """The most frequent confusions: (true class, predicted class, clips), most clips first; (K, K), true in rows.

    Of equally many clips the first classes come first; pairs that no clip is of are left out. num_pairs: the most to
    give; none: all.
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:num_pairs]
    order = order[wrong.flat[order] > 0]
    return [(*divmod(int(index), len(confusion)), int(wrong.flat[index])) for index in order]


def own_head_first(scores: ArrayLike, labels: ArrayLike, *, head_classes: Sequence[int]) -> NDArray[np.float64]:
    """Scores in which the classes of other data sets rank behind all of the clip's own (multi-task learning).

    Simonyan and Zisserman 2014, sec. 4.

    K holds the data sets' classes one after the other, head_classes of each. Shapes (N, K), (N,) -> (N, K).
    """
    scores, head_of_class = np.asarray(scores, dtype=np.float64), np.repeat(np.arange(len(head_classes)), head_classes)
    own = head_of_class == head_of_class[np.asarray(labels)][:, None]
    behind = np.where(own, scores, np.inf).min(axis=1, keepdims=True) - 1
    return np.where(own, scores, behind)


def checked_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Validate scores and labels and convert them to arrays. Shapes (N, K), (N,), labels in [0, K).

    Raises:
        TrainingError: no clip, shapes that do not go together, a label outside [0, K), a score that is not finite.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise TrainingError(f"wanted scores (N, K) and labels (N,), got shapes {scores.shape} and {labels.shape}")
    if not scores.size:
        raise TrainingError(f"there is nothing to evaluate: wanted at least 1 clip and 1 class, got {scores.shape}")
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
