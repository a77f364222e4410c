"""Plots of a classification report: reliability diagram, per-class accuracies with confidence intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from twostream_ray.redaction import printable
from twostream_ray.visualize.figures import save
from twostream_ray.visualize.trials import QUIET

_ACCURACY, _GAP, _LINE = "#6baed6", "#d55e00", "#08306b"
_MOST_CLASSES = 120
_LONGEST_NAME = 40


def reliability_picture(
    confidences: ArrayLike, accuracies: ArrayLike, num_clips: ArrayLike, path: Path, *, title: str = ""
) -> None:
    """Draw a reliability diagram as a PNG (Guo et al. 2017, fig. 1), with a histogram of its bins.

    Args:
        confidences: (B,) mean probability of the best class in each of B bins of equal width, from 0 to 1; NaN where
            a bin has no clip.
        accuracies: (B,) share of each bin's clips that are right; NaN where it has none.
        num_clips: (B,) clips of each bin.
        path: the PNG to write.
        title: what was scored.
    """
    sure, right, clips = (np.asarray(values, dtype=np.float64) for values in (confidences, accuracies, num_clips))
    width, has_clips = 1 / len(clips), clips > 0
    centres = (np.arange(len(clips)) + 0.5) * width
    figure = Figure(figsize=(5.6, 6.4), dpi=120)
    figure.set_layout_engine("constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1, label="as sure as right")
    top.bar(centres[has_clips], right[has_clips], width=0.92 * width, color=_ACCURACY, label="share that is right")
    for centre, confidence, accuracy in zip(centres[has_clips], sure[has_clips], right[has_clips], strict=True):
        top.plot([centre, centre], [accuracy, confidence], color=_GAP, linewidth=1.6)
    top.plot(centres[has_clips], sure[has_clips], "o", color=_GAP, markersize=4, label="mean probability")
    top.set_ylim(0, 1.02)
    top.set_ylabel("of the bin's clips")
    top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    top.legend(loc="upper left", fontsize=8, framealpha=0.85)
    top.set_title(printable(title), fontsize=11, parse_math=False)
    bottom.bar(centres, clips, width=0.92 * width, color=QUIET)
    bottom.set_ylabel("clips")
    bottom.set_xlim(0, 1)
    bottom.set_xlabel("probability of the best class")
    bottom.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (top, bottom):
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def class_accuracies_picture(
    num_right: NDArray[np.integer],
    num_clips: NDArray[np.integer],
    intervals: NDArray[np.floating],
    classes: Sequence[str],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw the accuracy of each class that has clips, with its interval, as a PNG; weakest first, at most 120.

    Args:
        num_right: (K,) clips that are right.
        num_clips: (K,) clips.
        intervals: (K, 2) ends of each accuracy's interval, in [0, 1].
        classes: K names.
        path: the PNG to write.
        title: what was scored.
    """
    has_clips = np.flatnonzero(num_clips)
    accuracy = np.divide(num_right, np.maximum(num_clips, 1))
    order = has_clips[np.argsort(accuracy[has_clips], kind="stable")]
    shown, rows = order[:_MOST_CLASSES], np.arange(min(len(order), _MOST_CLASSES))
    names = [f"{_shortened(classes[label])}  {num_right[label]}/{num_clips[label]}" for label in shown]
    few = len(shown) <= 40
    letters = 9 if few else 7
    figure = Figure(figsize=(8.5, 1.1 + len(shown) * (0.26 if few else 0.155)), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.hlines(rows, intervals[shown, 0], intervals[shown, 1], color=_ACCURACY, linewidth=3 if few else 2)
    axes.plot(accuracy[shown], rows, "o", color=_LINE, markersize=5 if few else 3.5)
    mean = float(accuracy[has_clips].mean()) if len(has_clips) else 0.0
    axes.axvline(mean, color=QUIET, linestyle="--", linewidth=1)
    axes.set_yticks(rows, labels=names, fontsize=letters, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-0.01, 1.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    left_out = "" if len(order) == len(shown) else f"\nthe {len(order) - len(shown)} strongest classes are left out"
    axes.set_xlabel(f"right of the class's clips, with 95 % intervals; dashed: mean of classes, {mean:.1%}{left_out}")
    axes.set_title(printable(title), fontsize=11, parse_math=False)
    save(figure, path)


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
