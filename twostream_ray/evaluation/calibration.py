"""Calibration of class probabilities: expected calibration error, reliability, temperature scaling (Guo et al. 2017).

Guo et al. 2017: "On Calibration of Modern Neural Networks". Axes: N clips, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.metrics import checked_scores
from twostream_ray.heads import Head

NUM_BINS = 15
"""Of equal width, as Guo et al. 2017 take them."""

_COLDEST, _HOTTEST = 0.01, 1000.0
"""Search range of the temperature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Clips whose best class has a probability in (low, high]."""

    low: float
    high: float
    num_clips: int
    """How many these are."""
    confidence: float | None
    """Mean of their best classes' probabilities; none where there is no clip."""
    accuracy: float | None
    """Share of them that are right; none where there is no clip."""

    def to_dict(self) -> dict[str, Any]:
        """The bin in JSON's types."""
        return {
            "low": self.low,
            "high": self.high,
            "num_clips": self.num_clips,
            "confidence": self.confidence,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Reliability diagram: confidence of the best class against accuracy."""

    bins: tuple[ReliabilityBin, ...]
    """15 of equal width, from 0 to 1."""

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: mean over clips of their bin's |accuracy - confidence| (eq. 3)."""
        gaps = [
            one.num_clips * abs(one.accuracy - one.confidence)
            for one in self.bins
            if one.accuracy is not None and one.confidence is not None
        ]
        return float(sum(gaps) / sum(one.num_clips for one in self.bins))

    def to_dict(self) -> dict[str, Any]:
        """Error and bins in JSON's types."""
        return {"ece": self.ece, "bins": [one.to_dict() for one in self.bins]}


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, heads: Sequence[Head]) -> Reliability:
    """The reliability of the best class's probability, of the classes of the clip's own data set.

    Args:
        probabilities: (N, K), those of each data set adding up to 1.
        labels: (N,) true classes, in [0, K).
        heads: the data sets, whose classes make up K.

    Raises:
        TrainingError: as checked_scores, or a value outside [0, 1].
    """
    values, labels = checked_scores(probabilities, labels)
    if values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise TrainingError(f"wanted probabilities from 0 to 1, got {values.min()} to {values.max()}")
    confidences, right = np.empty(len(labels)), np.empty(len(labels), dtype=np.bool_)
    for rows, head in _by_head(labels, heads):
        own = values[rows, head.columns].astype(np.float64)
        confidences[rows] = own.max(axis=1)
        right[rows] = own.argmax(axis=1) + head.start == labels[rows]
    number = np.clip(np.ceil(confidences * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    clips = np.bincount(number, minlength=NUM_BINS)
    sure = np.bincount(number, weights=confidences, minlength=NUM_BINS)
    hits = np.bincount(number, weights=right, minlength=NUM_BINS)
    return Reliability(
        bins=tuple(
            ReliabilityBin(
                low=index / NUM_BINS,
                high=(index + 1) / NUM_BINS,
                num_clips=int(count),
                confidence=float(sure[index] / count) if count else None,
                accuracy=float(hits[index] / count) if count else None,
            )
            for index, count in enumerate(clips)
        )
    )


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, heads: Sequence[Head]) -> float:
    """Temperature scaling: minimises the negative log-likelihood of softmax(logits / temperature) (sec. 4.2).

    Fit it on validation clips: it has seen their labels. Of networks that average probabilities the logits are the
    logarithms of these. It changes no best class.

    Args:
        logits: (N, K).
        labels: (N,) true classes, in [0, K).
        heads: the data sets, whose classes make up K.

    Returns:
        In [0.01, 1000]; above 1 if the network is overconfident.

    Raises:
        TrainingError: as checked_scores.
    """
    from scipy import optimize

    values, labels = checked_scores(logits, labels)
    parts = []
    for rows, head in _by_head(labels, heads):
        own = values[rows, head.columns].astype(np.float64)
        true = own[np.arange(len(rows)), labels[rows] - head.start]
        parts.append(own - true[:, None])  # the likelihood depends on the distances alone

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float(sum(_log_sum_exp(part / temperature).sum() for part in parts) / len(labels))

    found = optimize.minimize_scalar(
        loss, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(found.x))


def _by_head(labels: NDArray[np.int64], heads: Sequence[Head]) -> list[tuple[NDArray[np.int64], Head]]:
    """The rows of each data set that has clips."""
    found = [(np.flatnonzero((labels >= head.start) & (labels < head.stop)), head) for head in heads]
    return [(rows, head) for rows, head in found if len(rows)]


def _log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = values.max(axis=1)
    return np.asarray(largest + np.log(np.exp(values - largest[:, None]).sum(axis=1)))
