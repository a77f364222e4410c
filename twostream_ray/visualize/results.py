"""Plots of results: confusion matrix, accuracies by network and by late-fusion weight, training curves."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from twostream_ray.redaction import printable
from twostream_ray.visualize.figures import save
from twostream_ray.visualize.trials import QUIET

_MOST_COUNTED_CLASSES = 20
_MOST_NAMED_CLASSES = 120
_LONGEST_NAME = 40
_MOST_CONFUSIONS = 25
_CURVE = re.compile(r"(?P<split>train|val)_(?P<quantity>loss|top1)(_(?P<tower>\w+))?")
_LOGARITHMIC_RATIO = 10
"""Learning rates are drawn on a logarithmic axis from this ratio of the highest to the lowest."""
_TOWER_COLOURS = {"network": "#222222", "spatial": "#d55e00", "temporal": "#0072b2"}
_SPARE_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def confusion_picture(
    matrix: NDArray[np.integer], classes: Sequence[str], path: Path, *, title: str = "", num_expected: int | None = None
) -> None:
    """Draw a confusion matrix as a PNG: each cell is coloured by its share of the true class's clips.

    Only classes with clips have a row; they come first in the columns, before other classes that were predicted. Up to
    20 classes the clips are written into the cells, beyond that the most frequent confusions are listed beside them; up
    to 120 the classes are named, beyond that numbered.

    Args:
        matrix: (K, K) clips by true class (row) and predicted class (column).
        classes: K names.
        path: the PNG to write.
        title: what was scored, and on which split.
        num_expected: clips of the split, where some could not be scored.
    """
    true = np.flatnonzero(matrix.sum(axis=1)) if matrix.any() else np.arange(len(classes))
    others = np.setdiff1d(np.flatnonzero(matrix.sum(axis=0)), true)
    columns = np.concatenate([true, others])
    cells = matrix[np.ix_(true, columns)]
    num_rows, num_columns = cells.shape
    counted, named = num_columns <= _MOST_COUNTED_CLASSES, num_columns <= _MOST_NAMED_CLASSES
    share = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    names = [_shortened(classes[label]) for label in columns] if named else []
    listed = [] if counted else _most_confused(matrix, classes)

    side = float(np.clip(0.45 * num_columns, 3.2, 11.5))
    # A class has side * 72 / K points; letters of two thirds of that do not touch and are .6 of their height wide.
    letters = float(np.clip(0.66 * side * 72 / num_columns, 4, 10))
    label = max((len(name) for name in names), default=4) * 0.6 * letters / 72
    width, beside = side + label + 1.6, 0.075 * max(map(len, listed)) + 0.3 if listed else 0.0
    figure = Figure(figsize=(width + beside, side + label + 1.1), dpi=120 if counted else 160)
    figure.set_layout_engine("constrained")
    # Not two axes: their layout would cut the names of classes off.
    parts = figure.subfigures(1, 2, width_ratios=[width, beside], squeeze=False)[0] if listed else [figure]
    axes = parts[0].add_subplot()
    # The square root lets a few confused clips be seen beside a full diagonal.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    axes.set_title("\n".join(filter(None, [title, _right_of(matrix, num_expected)])), fontsize=11, parse_math=False)
    axes.set_xlabel("predicted class" + ("; grey names: no clip of the split" if named and len(others) else ""))
    axes.set_ylabel("true class")
    if named:
        # Upright where the names are too long to stand beside each other.
        rotation = 0 if label * num_columns < 0.9 * side else 90
        style: dict[str, Any] = {"fontsize": letters, "parse_math": False}
        axes.set_xticks(range(num_columns), labels=names, rotation=rotation, **style)
        axes.set_yticks(range(num_rows), labels=names[:num_rows], **style)
        axes.tick_params(length=0)
        for column, tick in enumerate(axes.get_xticklabels()):
            tick.set_color("black" if column < num_rows else QUIET)
    if counted:
        _write_counts(axes, cells, share)
    bar = parts[0].colorbar(image, ax=axes, shrink=0.8, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class's clips")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if listed:
        parts[1].text(0, 0.92, "most frequent confusions", fontsize=9, weight="bold", va="top")
        parts[1].text(0, 0.9, "\n".join(listed), fontsize=8, va="top", linespacing=1.6, parse_math=False)
    save(figure, path)


def _write_counts(axes: Axes, cells: NDArray[np.integer], share: NDArray[np.floating]) -> None:
    """Separate the cells by white lines and write the number of clips into each."""
    num_rows, num_columns = cells.shape
    axes.set_xticks(np.arange(1, num_columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, num_rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    for row, column in np.argwhere(cells > 0):
        colour = "white" if share[row, column] > 0.35 else "black"
        axes.text(column, row, str(cells[row, column]), ha="center", va="center", fontsize=9, color=colour)


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _right_of(matrix: NDArray[np.integer], num_expected: int | None) -> str:
    """Top-1 as text: "top-1 81.2%: 13 of 16 clips right", plus the number of scored clips if not all were."""
    right, scored = int(matrix.trace()), int(matrix.sum())
    words = f"top-1 {right / max(scored, 1):.1%}: {right} of {scored} clips right"
    return words if num_expected in (None, scored) else f"{words}, {scored} of the split's {num_expected} scored"


def _most_confused(matrix: NDArray[np.integer], classes: Sequence[str]) -> list[str]:
    """The most frequent mistakes, a line each: "12 of 40  Run, taken for Walk"."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = [index for index in np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS] if wrong.flat[index]]
    pairs = [divmod(int(index), len(matrix)) for index in order]
    return [
        f"{wrong[true, taken]} of {matrix[true].sum()}  {_shortened(classes[true])}, "
        f"taken for {_shortened(classes[taken])}"
        for true, taken in pairs
    ]


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


def intervals_picture(top1: Mapping[str, tuple[float, float, float]], path: Path, *, title: str) -> None:
    """Draw the accuracy of several networks on the same clips as a PNG: a bar each, with its 95 % interval.

    Args:
        top1: network -> accuracy, and the low and the high end of its interval, in [0, 1].
        path: the PNG to write.
        title: the clips.
    """
    figure = Figure(figsize=(8.5, 1.3 + 0.42 * len(top1)), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    means, lows, highs = np.array(list(top1.values())).T
    xs = range(len(top1))
    axes.barh(xs, means, color="#9ecae1", height=0.7)
    axes.hlines(xs, lows, highs, color="#08306b", linewidth=2)
    for x, mean, high in zip(xs, means, highs, strict=True):
        axes.text(max(mean, high) + 0.01, x, f"{mean:.1%}", va="center", fontsize=9)
    axes.set_yticks(xs, labels=[*map(printable, top1)], fontsize=9, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_title(printable(title), loc="left", fontsize=11, parse_math=False)
    axes.set_xlim(0, 1.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("top-1; line: 95 % interval")
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
    """Draw the accuracy of late fusion over the temporal stream's weight as a PNG, with a marked weight on each line.

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


def curves_picture(
    history: Sequence[Mapping[str, float]], path: Path, *, title: str = "", kept_epoch: int | None = None
) -> None:
    """Draw loss, top-1 and learning rate by epoch as a PNG: training dashed, validation solid, towers in colours.

    Args:
        history: one mapping per epoch with `epoch`, counted from 0 and drawn from 1, and any of `learning_rate`,
            `SPLIT_loss`, `SPLIT_top1`, `SPLIT_loss_TOWER`, `SPLIT_top1_TOWER`, where SPLIT is train or val; without
            TOWER it is the whole network, whose loss is the sum of its towers'. Others are left out.
        path: the PNG to write.
        title: what was trained.
        kept_epoch: epoch of the kept checkpoint, from 0.
    """
    found = {name: match for epoch in history for name in epoch if (match := _CURVE.fullmatch(name))}
    several = len({match["tower"] for match in found.values() if match["tower"] and match["quantity"] == "loss"}) > 1
    figure = Figure(figsize=(14, 4.2), dpi=120)
    figure.set_layout_engine("constrained")
    panels: dict[str, Axes] = dict(zip(("loss", "top1", "rate"), figure.subplots(1, 3), strict=True))
    colours = dict(_TOWER_COLOURS)
    legend: dict[str, Artist] = {}
    for name, match in sorted(found.items(), key=lambda item: (item[1]["tower"] or "", item[0])):
        if not several and match["tower"]:
            continue  # a single tower's curves are the network's
        tower = match["tower"] or "network"
        colour = colours.setdefault(tower, _SPARE_COLOURS[len(colours) % len(_SPARE_COLOURS)])
        kind = "validation" if match["split"] == "val" else "training"
        (legend[f"{tower}, {kind}"],) = panels[match["quantity"]].plot(
            *_points(history, name),
            color=colour,
            linestyle="-" if match["split"] == "val" else "--",
            marker="o",
            markersize=3,
            linewidth=2 if tower == "network" else 1.2,
        )
    for quantity, name in (
        ("loss", "loss; of the network: sum of losses" if several else "loss"),
        ("top1", "top-1: validation of clips, training of samples"),
        ("rate", "learning rate"),
    ):
        axes = panels[quantity]
        axes.set_xlabel("epoch")
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if history:
            axes.set_xlim(history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
        if kept_epoch is not None:
            legend["kept checkpoint"] = axes.axvline(kept_epoch + 1, color="#009e73", linewidth=4, alpha=0.3, zorder=0)
    panels["loss"].set_ylim(bottom=0)
    panels["top1"].set_ylim(0, 1.02)
    panels["top1"].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _draw_rates(panels["rate"], history)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def _draw_rates(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    """Draw learning rates by epoch, on a logarithmic axis if they span more than a decade."""
    axes.plot(*_points(history, "learning_rate"), color="#444444", drawstyle="steps-mid", marker="o", markersize=3)
    rates = [epoch["learning_rate"] for epoch in history if epoch.get("learning_rate", 0) > 0]
    if rates and max(rates) >= _LOGARITHMIC_RATIO * min(rates):
        axes.set_yscale("log")
        axes.set_ylim(min(rates) / 2, max(rates) * 2)
    else:
        axes.set_ylim(bottom=0)


def _points(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Epochs, from 1, and values of a metric, where it is known."""
    known = [epoch for epoch in history if name in epoch]
    return [epoch["epoch"] + 1 for epoch in known], [epoch[name] for epoch in known]
