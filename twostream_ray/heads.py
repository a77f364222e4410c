"""Multi-task heads (Simonyan and Zisserman 2014, sec. 4): class ranges of the data sets, logits and probabilities.

Axes: N clips, K classes, concatenated over the data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twostream_ray.errors import ConfigError

Averaged = Literal["logits", "probabilities"]
"""What a network averages over its towers and a clip's views."""

_SMALLEST_PROBABILITY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The classes of one data set among a network's K outputs."""

    name: str
    """Name of the data set, or its number from 1 if class names lack it; "" for a single data set."""
    start: int
    """First of its classes, in [0, K)."""
    stop: int
    """End of its classes, exclusive, in (start, K]."""

    @property
    def columns(self) -> slice:
        """Its slice of the class axis."""
        return slice(self.start, self.stop)

    def classes_of(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Its class names, out of all K."""
        return tuple(classes[self.columns])


class ClassScores(NamedTuple):
    """A network's scores of clips as logits and probabilities, (N, K) or (K,) each."""

    logits: NDArray[np.float64]
    """Their softmax over the classes of a data set gives its probabilities; where a network averages probabilities
    (late fusion, a single stream), their logarithms."""
    probabilities: NDArray[np.float64]
    """In [0, 1]; those of each data set add up to 1."""


def heads_of(classes: Sequence[str], head_classes: Sequence[int]) -> tuple[Head, ...]:
    """The heads of a network with `head_classes` classes for each data set; () is one data set.

    Where clips of several data sets are ingested, a class's name begins with that of its data set and a slash.
    """
    sizes = list(head_classes) or [len(classes)]
    if len(sizes) == 1:
        return (Head(name="", start=0, stop=len(classes)),)
    stops = np.cumsum(sizes).tolist()
    parts = list(zip([0, *stops[:-1]], stops, strict=True))
    prefixes = [{name.partition("/")[0] if "/" in name else "" for name in classes[a:b]} for a, b in parts]
    names = [next(iter(found)) if len(found) == 1 else "" for found in prefixes]
    if not all(names) or len(set(names)) < len(names):
        names = [str(number) for number in range(1, len(parts) + 1)]
    return tuple(Head(name=name, start=start, stop=stop) for name, (start, stop) in zip(names, parts, strict=True))


def choose_heads(heads: Sequence[Head], name: str | None, *, of: str) -> tuple[Head, ...]:
    """All heads, or only that of the data set `name`; `of` names their owner in errors.

    Raises:
        ConfigError: there is no such data set.
    """
    if name is None:
        return tuple(heads)
    chosen = tuple(head for head in heads if head.name == name)
    if not chosen:
        known = ", ".join(head.name for head in heads if head.name) or "one data set alone, without a name"
        raise ConfigError(f"head must name a data set of {of}, got {name!r}: it has {known}; or leave head out")
    return chosen


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Class probabilities, each row adding up to 1. Shape (N, K) -> (N, K)."""
    logits = np.asarray(logits, dtype=np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def softmax_by_head(logits: ArrayLike, heads: Sequence[Head]) -> NDArray[np.float64]:
    """Class probabilities, those of each data set adding up to 1. Shape (N, K) -> (N, K)."""
    logits = np.asarray(logits, dtype=np.float64)
    return np.concatenate([softmax(logits[:, head.columns]) for head in heads], axis=1)


def logits_from(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Logits whose softmax gives these probabilities: their logarithms, clamped at 1e-30. Any shape."""
    values: NDArray[Any] = np.asarray(probabilities, dtype=np.float64)
    return np.asarray(np.log(np.maximum(values, _SMALLEST_PROBABILITY)))


def class_scores(averaged: ArrayLike, *, are: Averaged, heads: Sequence[Head]) -> ClassScores:
    """Logits and probabilities from averaged scores, whose kind is `are`. Shape (N, K) -> (N, K) twice."""
    values = np.asarray(averaged, dtype=np.float64)
    if are == "probabilities":
        return ClassScores(logits=logits_from(values), probabilities=values)
    return ClassScores(logits=values, probabilities=softmax_by_head(values, heads))
