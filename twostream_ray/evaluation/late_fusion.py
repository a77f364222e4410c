"""Late fusion of two streams' scores: weighted average, linear SVM (Simonyan and Zisserman 2014, sec. 2).

S&Z 2014: Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos".
Axes: N clips, K classes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.metrics import checked_scores
from twostream_ray.heads import softmax


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
    _require_fusable(spatial, temporal, temporal_weights=np.array([temporal_weight]))
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
    """Number of correct clips at each of many weights, equal to `late_fusion` of "logits" followed by `top_k_hits`.

    Classes that both streams rank behind the true one cannot win at any weight and are skipped.
    Shapes (N, K), (N, K), (N,), (W,) -> (W,), values in [0, N].

    Raises:
        TrainingError: as late_fusion and checked_scores.
    """
    weights = np.asarray(temporal_weights, dtype=np.float64)
    _require_fusable(np.asarray(spatial), np.asarray(temporal), temporal_weights=weights)
    spatial, labels = checked_scores(spatial, labels)
    temporal, _ = checked_scores(temporal, labels)
    spatial, temporal = spatial.astype(np.float64), temporal.astype(np.float64)
    rows = np.arange(len(labels))
    own_spatial, own_temporal = spatial[rows, labels][:, None], temporal[rows, labels][:, None]
    # A margin, so that rounding cannot make the fused scores equal.
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


def _require_fusable(spatial: NDArray[Any], temporal: NDArray[Any], *, temporal_weights: NDArray[np.float64]) -> None:
    if spatial.shape != temporal.shape:
        raise TrainingError(
            f"late fusion wants the same clips and classes from both streams, got spatial {spatial.shape} and "
            f"temporal {temporal.shape}"
        )
    refused = temporal_weights[~((temporal_weights >= 0) & (temporal_weights <= 1))]
    if refused.size:
        raise TrainingError(f"temporal_weight must be from 0 to 1, got {refused[0]}")


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
        scores: (N, K) of each stream, for the clips to score.
        fit_scores: (M, K) of each stream, in the same order, for the clips to learn from.
        fit_labels: (M,) their true classes; every class must be among them.
        penalty: C, the weight of mistakes against the width of the margin; above 0 (the paper does not give it).
        of: "softmax" turns logits into probabilities first, "logits" takes the scores as they are, as in late_fusion.

    Returns:
        (N, K), higher is better; not probabilities.

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
    _, labels = checked_scores(fit_scores[0], fit_labels)
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
