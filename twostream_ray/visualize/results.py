"""Plots of what networks scored: confusion matrix, accuracies by network, by weight of late fusion, curves by epoch."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from twostream_ray.redaction import printable
from twostream_ray.visualize.figures import save

_MOST_COUNTED_CLASSES = 20
_MOST_NAMED_CLASSES = 120
_LONGEST_NAME = 40
_CURVE = re.compile(r"(?P<split>train|val)_(?P<quantity>loss|top1)(_(?P<tower>\w+))?")
_TOWER_COLOURS = {"network": "#222222", "spatial": "#d55e00", "temporal": "#0072b2"}
_SPARE_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def confusion_picture(matrix: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as a PNG: each cell is coloured by its share of the true class's clips.

    Up to 20 classes the clips are written into the cells, up to 120 the classes are named, beyond that numbered.

    Args:
        matrix: (K, K) clips by true class (row) and predicted class (column).
        classes: K names.
        path: the PNG to write.
    """
    num_classes = len(classes)
    counted, named = num_classes <= _MOST_COUNTED_CLASSES, num_classes <= _MOST_NAMED_CLASSES
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = (
        [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in map(printable, classes)]
        if named
        else []
    )

    side = float(np.clip(0.45 * num_classes, 3.2, 11.5))
    # A class has side * 72 / K points; letters of two thirds of that do not touch and are .6 of their height wide.
    letters = float(np.clip(0.66 * side * 72 / num_classes, 4, 10))
    label = max((len(name) for name in names), default=4) * 0.6 * letters / 72
    figure = Figure(figsize=(side + label + 1.6, side + label + 0.9), dpi=120 if counted else 160)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    # The square root lets a few confused clips be seen beside a full diagonal.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    axes.set_title(f"{int(matrix.trace())} of {int(matrix.sum())} clips on the diagonal", fontsize=11)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if named:
        short = label * num_classes < 0.9 * side
        axes.set_xticks(
            range(num_classes), labels=names, fontsize=letters, parse_math=False, rotation=0 if short else 90
        )
        axes.set_yticks(range(num_classes), labels=names, fontsize=letters, parse_math=False)
        axes.tick_params(length=0)
    if counted:
        axes.set_xticks(np.arange(1, num_classes) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, num_classes) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if share[row, column] > 0.35 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=9, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class's clips")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    save(figure, path)


def accuracies_picture(accuracies: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw accuracies by group and network as a PNG: a bar for the mean over seeds, a dot for each seed.

    Args:
        accuracies: group -> network -> accuracy of each seed in [0, 1].
        path: the PNG to write.
    """
    rows = [len(networks) for networks in accuracies.values()]
    figure = Figure(figsize=(8.5, 0.9 + 0.55 * len(rows) + 0.28 * sum(rows)), dpi=120)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=[count + 1 for count in rows])
    for axes, (group, networks) in zip(panels[:, 0], accuracies.items(), strict=True):
        xs = range(len(networks))
        axes.barh(xs, [float(np.mean(seeds)) for seeds in networks.values()], color="#9ecae1", height=0.7)
        for x, seeds in zip(xs, networks.values(), strict=True):
            axes.plot(seeds, [x] * len(seeds), "o", color="#08306b", markersize=3.5)
        axes.set_yticks(xs, labels=[*map(printable, networks)], fontsize=9, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_title(group, loc="left", fontsize=11)
        axes.set_xlim(0, 1.02)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[-1, 0].set_xlabel("top-1 on the test split; bar: mean over seeds, dots: each seed")
    save(figure, path)


def weights_picture(
    weights: NDArray[np.floating],
    accuracies: Mapping[str, NDArray[np.floating]],
    path: Path,
    *,
    marked: Mapping[str, float],
    quoted: Mapping[str, NDArray[np.floating]],
    levels: Mapping[str, float],
    title: str,
) -> None:
    """Draw the accuracy of late fusion against the temporal stream's weight as a PNG, a weight of each line marked.

    Args:
        weights: (W,) in [0, 1].
        accuracies: (W,) in [0, 1] of each way to fuse.
        path: the PNG to write.
        marked: the weight of each way that gets a dot and its accuracy.
        quoted: (W,) in [0, 1] of the same ways on other clips, dashed and marked at the same weight.
        levels: accuracies in [0, 1] of ways that have no weight.
        title: what is drawn.
    """
    figure = Figure(figsize=(8.5, 4.6), dpi=110)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    colours = itertools.cycle((_TOWER_COLOURS["temporal"], _TOWER_COLOURS["spatial"], *_SPARE_COLOURS))
    for (name, accuracy), colour in zip(accuracies.items(), colours, strict=False):
        x = int(np.argmin(np.abs(weights - marked[name])))
        axes.plot(weights, accuracy, color=colour, linewidth=1.5, label=f"{name}: {accuracy[x]:.2%}")
        axes.plot(weights[x], accuracy[x], "o", color=colour, markersize=6)
        if name in quoted:
            other = quoted[name]
            label = f"the same on the clips to quote: {other[x]:.2%}"
            axes.plot(weights, other, color=colour, linewidth=1.2, linestyle="--", label=label)
            axes.plot(weights[x], other[x], "o", color=colour, markersize=6, markerfacecolor="white")
    for (name, level), colour in zip(levels.items(), reversed(_SPARE_COLOURS), strict=False):
        axes.axhline(level, color=colour, linestyle=":", linewidth=1.4, label=f"{name}: {level:.2%}")
    axes.axvline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel("weight of the temporal stream; 0: spatial alone, 1: temporal alone")
    axes.set_ylabel("top-1")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="at the best weight", fontsize=8, title_fontsize=8, framealpha=0.85)
    axes.set_title(title, fontsize=10, parse_math=False, wrap=True)
    save(figure, path)


def curves_picture(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss and top-1 by epoch as a PNG: training dashed, validation solid, each tower in its colour.

    Args:
        history: one mapping per epoch with `epoch`, counted from 0 and drawn from 1, and any of `SPLIT_loss`,
            `SPLIT_top1`, `SPLIT_loss_TOWER`, `SPLIT_top1_TOWER`, where SPLIT is train or val; without TOWER it is the
            whole network. Others are left out.
        path: the PNG to write.
    """
    found = {name: match for epoch in history for name in epoch if (match := _CURVE.fullmatch(name))}
    figure = Figure(figsize=(10.5, 3.8), dpi=120)
    figure.set_layout_engine("constrained")
    panels: dict[str, Axes] = dict(zip(("loss", "top1"), figure.subplots(1, 2), strict=True))
    colours = dict(_TOWER_COLOURS)
    legend = {}
    for name, match in sorted(found.items(), key=lambda item: (item[1]["tower"] or "", item[0])):
        tower = match["tower"] or "network"
        colour = colours.setdefault(tower, _SPARE_COLOURS[len(colours) % len(_SPARE_COLOURS)])
        points = [(epoch["epoch"] + 1, epoch[name]) for epoch in history if name in epoch]
        (legend[f"{tower}, {match['split']}"],) = panels[match["quantity"]].plot(
            *np.array(points).T,
            color=colour,
            linestyle="-" if match["split"] == "val" else "--",
            marker="o",
            markersize=3,
            linewidth=2 if tower == "network" else 1.2,
        )
    for quantity, title in (("loss", "loss"), ("top1", "top-1")):
        axes = panels[quantity]
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        if history:
            axes.set_xlim(history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
    panels["top1"].set_ylim(0, 1.02)
    panels["top1"].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)
