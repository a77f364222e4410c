"""Score aggregation over views and towers (late fusion): a clip's logits (V, S, K) -> one score vector (K,).

Softmax averages as Simonyan and Zisserman (2014, sec. 2 and 5) do; logits as Feichtenhofer et al. (2016), ST-ResNet
and I3D (Carreira and Zisserman 2017). Axes: N clips, V views, S towers, K classes.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.heads import ClassScores, Head, class_scores, softmax_by_head

Average = Literal["softmax", "logits"]
"""What is averaged: class probabilities or the logits themselves."""
OverTowers = Literal["mean", "max"]
"""How the towers' averages are combined."""

_PART_BYTES = 1 << 26
"""Size of a float64 chunk, to bound memory."""


def aggregate(
    logits: NDArray[np.floating],
    *,
    average: Average,
    heads: Sequence[Head],
    over_towers: OverTowers = "mean",
    tower_weights: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> ClassScores:
    """Scores of clips from the logits of all their views by all towers: first over views, then over towers.

    Computed in float64, in chunks of clips; the result of a clip does not depend on the other clips.

    Args:
        logits: (N, V, S, K), V and S at least 1.
        average: "softmax" turns each view's logits into the probabilities of each data set first.
        heads: the data sets, whose classes make up K.
        over_towers: mean, or the largest score of each class, with probabilities renormalised to add up to 1.
        tower_weights: (S,) weights of the mean, at least 0 and not all 0; only ratios matter; None: equal weights.
        temperature: all logits are divided by it first; above 0. 19 turns a sum over 19 frames into a mean.

    Returns:
        Logits and probabilities, (N, K) each; logits of averaged probabilities are their logarithms.

    Raises:
        TrainingError: an invalid shape, weight or temperature.
    """
    if logits.ndim != 4 or 0 in logits.shape[1:]:
        raise TrainingError(f"wanted logits (N, V, S, K) with V, S and K at least 1, got shape {logits.shape}")
    if not heads or heads[-1].stop != logits.shape[3]:
        stop = heads[-1].stop if heads else 0
        raise TrainingError(f"wanted logits of the {stop} classes of all data sets, got {logits.shape[3]}")
    if not 0 < temperature < np.inf:
        raise TrainingError(f"temperature must be more than 0 and finite, got {temperature}")
    num_clips, num_views, num_towers, num_classes = logits.shape
    step = max(1, _PART_BYTES // (8 * num_views * num_towers * num_classes))
    combined = np.empty((num_clips, num_classes))
    for start in range(0, num_clips, step):
        part = np.asarray(logits[start : start + step], dtype=np.float64) / temperature
        if average == "softmax":
            part = softmax_by_head(part.reshape(-1, num_classes), heads).reshape(part.shape)
        of_towers = list(np.moveaxis(part.mean(axis=1), 1, 0))
        combined[start : start + step] = join_towers(of_towers, over=over_towers, weights=tower_weights)
    if average == "logits":
        return class_scores(combined, are="logits", heads=heads)
    if over_towers == "max":
        for head in heads:
            combined[:, head.columns] /= combined[:, head.columns].sum(axis=1, keepdims=True)
    return class_scores(combined, are="probabilities", heads=heads)


def join_towers(
    scores: Sequence[ArrayLike], *, over: OverTowers = "mean", weights: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Weighted mean or maximum of towers' scores of the same clips; S x (N, K) -> (N, K), in float64.

    A tower of weight 0 is skipped, so that the others' scores stay bit-identical.

    Raises:
        TrainingError: no tower, towers of other shapes, weights below 0 or all 0, or weights of the largest.
    """
    towers = [np.asarray(tower, dtype=np.float64) for tower in scores]
    if not towers or any(tower.shape != towers[0].shape for tower in towers):
        raise TrainingError(
            f"wanted the same clips and classes from every tower, got shapes {[tower.shape for tower in towers]}"
        )
    if over == "max":
        if weights is not None:
            raise TrainingError(f"the largest of the towers' scores takes no weights, got {list(weights)}")
        return np.asarray(np.max(towers, axis=0))
    shares = np.ones(len(towers)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(towers),) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise TrainingError(
            f"wanted {len(towers)} weights of towers, at least 0 and not all of them 0, got {shares.tolist()}"
        )
    shares = shares / shares.sum()
    found = [share * tower for share, tower in zip(shares, towers, strict=True) if share]
    return np.asarray(sum(found[1:], start=found[0]))
