"""Parallel coordinates (Inselberg 1985) of all trials of a search."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from twostream_ray.visualize.figures import save
from twostream_ray.visualize.trials import (
    FINISHED,
    LONGEST_VALUE,
    QUIET,
    Trial,
    all_settings,
    clipped,
    count_by_status,
    is_number,
    number_of,
    score_of,
    short_names,
    varying_settings,
    written,
)

_MOST_VALUES_NAMED = 14
_LOGARITHMIC_RATIO = 50
"""A positive setting is drawn on a logarithmic axis from this ratio of its largest to its smallest value."""
_NOT_SET = -0.13
"""Height, on an axis over [0, 1], of the lines of trials without the setting."""
_DASHES = {"finished": "-", "did not finish: its last score": (0, (4, 2)), "without a score": (0, (1, 2))}
_HALO = [withStroke(linewidth=2.5, foreground="white")]


def parallel_coordinates_picture(
    trials: Sequence[Trial], path: Path, *, logarithmic: Mapping[str, bool] | None = None
) -> None:
    """Draw each trial as a line over its settings to its score, as a PNG: the darker the line, the better the trial.

    Settings that are the same in all trials are left out. Trials that did not finish are dashed, those without a score
    grey and dotted. A trial without a setting passes below that axis.

    Args:
        trials: settings and outcome of each, as `visualize.trials` says.
        path: the PNG to write.
        logarithmic: for settings sampled from a range, whether on a logarithmic scale, which their axis then
            uses; other axes are logarithmic depending on the ratio of the largest to the smallest value.
    """
    names = varying_settings(trials) or all_settings(trials)
    columns: list[Sequence[object]] = [[trial.get(name) for trial in trials] for name in names]
    known = logarithmic or {}
    scales = [_Scale.of(column, logarithmic=known.get(name)) for name, column in zip(names, columns, strict=True)]
    counts = [number_of(trial, "parameters") for trial in trials]
    if len({*counts} - {None}) > 1:
        names, columns, scales = [*names, "parameters"], [*columns, counts], [*scales, _Scale.of(counts, count=True)]
    scores = [score_of(trial) for trial in trials]
    columns, scales = [*columns, scores], [*scales, _Scale.of(scores, share=True)]
    last = len(names)

    # The best on top.
    order = sorted(range(len(trials)), key=lambda position: -1.0 if (own := scores[position]) is None else own)
    xs = np.stack([scale.xs(column, order) for scale, column in zip(scales, columns, strict=True)], axis=1)
    colours = _colours(scores)
    figure = Figure(figsize=(min(2.2 + 1.35 * last, 26), 5.6), dpi=110)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    crowd = float(np.clip(1.5 - len(trials) / 100, 0.35, 1.0))
    for position in order:
        _draw_line(axes, xs[position], colours[position], style=_style(trials[position]), crowd=crowd)
    heads = [*map(_header, short_names(names)), "top-1"]
    for x, (scale, head) in enumerate(zip(scales, heads, strict=True)):
        axes.plot([x, x], [0, 1], color="#444444", linewidth=1, zorder=900)
        _draw_ticks(axes, x, scale, right=x == last)
        axes.text(x, 1.05, head, ha="center", va="bottom", fontsize=9, parse_math=False, weight="bold", zorder=1000)
        if any(value is None for value in columns[x]):
            absent = "no score" if x == last else "not set"
            axes.text(x, _NOT_SET - 0.05, absent, ha="center", va="top", fontsize=8, color="#444444", style="italic")
    if len({*scores} - {None}) > 1:
        _draw_score_strip(axes, last)
    axes.set_xlim(-0.55, last + 0.55)
    axes.set_ylim(-0.24 if any(None in column for column in columns) else -0.06, 1.2)
    axes.set_axis_off()
    axes.set_title(count_by_status(trials), fontsize=11, parse_math=False)
    if styles := [style for style in _DASHES if style in map(_style, trials)]:
        figure.legend(
            [Line2D([], [], color="#444444", linestyle=_DASHES[style]) for style in styles],
            styles,
            loc="outside lower center",
            ncols=len(styles),
            fontsize=8,
            frameon=False,
        )
    save(figure, path)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """The scale of one setting's values on an axis from 0 to 1."""

    names: Sequence[str]
    """Of a setting whose values are names, in the order of the axis; empty where they are numbers."""
    low: float
    high: float
    logarithmic: bool
    ticks: Sequence[tuple[float, str]]
    """Position on the axis, in [0, 1], and label."""

    @classmethod
    def of(
        cls, values: Sequence[object], *, count: bool = False, share: bool = False, logarithmic: bool | None = None
    ) -> "_Scale":
        """The scale that holds these values; `count` of things, `share` in percent."""
        present = [value for value in values if value is not None]
        if any(not is_number(value) for value in present):
            named = sorted({written(value) for value in present})
            step = -(-len(named) // _MOST_VALUES_NAMED)
            return cls(
                names=named,
                low=0,
                high=1,
                logarithmic=False,
                ticks=[(_spaced(x, len(named)), clipped(named[x], LONGEST_VALUE)) for x in range(0, len(named), step)],
            )
        if not present:
            return cls(names=(), low=0, high=1, logarithmic=False, ticks=())
        numbers = np.unique(np.array([float(value) for value in present]))  # type: ignore[arg-type]
        low, high = float(numbers[0]), float(numbers[-1])
        if low == high:
            low, high = low - 1e-3, high + 1e-3
        if logarithmic is None:
            logarithmic = not share and numbers[0] > 0 and high / numbers[0] >= _LOGARITHMIC_RATIO
        logarithmic = bool(logarithmic and low > 0)
        scale = cls(names=(), low=low, high=high, logarithmic=logarithmic, ticks=())
        ticks = numbers
        if len(numbers) > 6 or (len(numbers) > 1 and np.diff(scale.at(numbers)).min() < 0.05):
            locator = LogLocator(subs=(1, 3)) if logarithmic else MaxNLocator(6)
            ticks = np.asarray(locator.tick_values(low, high))
            ticks = ticks[(ticks >= low) & (ticks <= high)]
            if len(ticks) < 2:  # within a decade
                ticks = np.asarray(MaxNLocator(4).tick_values(low, high))
                ticks = ticks[(ticks >= low) & (ticks <= high)]
        if share:
            texts = [f"{tick:.{1 if high - low < 0.1 else 0}%}" for tick in ticks]
        else:
            texts = [EngFormatter(sep="").format_eng(tick) if count else f"{tick:.4g}" for tick in ticks]
        return cls(
            names=(),
            low=low,
            high=high,
            logarithmic=logarithmic,
            ticks=list(zip(scale.at(ticks).tolist(), texts, strict=True)),
        )

    def at(self, numbers: NDArray[np.floating]) -> NDArray[np.float64]:
        """Positions of numbers on the axis, in [0, 1]."""
        if self.logarithmic:
            return np.asarray(np.log(numbers / self.low) / np.log(self.high / self.low))
        return np.asarray((numbers - self.low) / (self.high - self.low))

    def xs(self, values: Sequence[object], order: Sequence[int]) -> NDArray[np.float64]:
        """Height of each trial's line at the axis; lines of equal values are spread, later ones in `order` on top."""
        found = np.full(len(values), _NOT_SET)
        for position, value in enumerate(values):
            if value is not None and self.names:
                found[position] = _spaced(self.names.index(written(value)), len(self.names))
            elif value is not None:
                found[position] = self.at(np.array([float(value)]))[0]  # type: ignore[arg-type]
        bundled = found.copy()
        for x in np.unique(found):
            sharing = [position for position in order if found[position] == x]
            spread = min(0.3 / len(self.names) if self.names and x != _NOT_SET else 0.03, 0.006 * (len(sharing) - 1))
            bundled[sharing] = x + np.linspace(-spread, spread, len(sharing))
        return bundled


def _style(trial: Trial) -> str:
    if score_of(trial) is None:
        return "without a score"
    return "finished" if trial.get("status") == FINISHED else "did not finish: its last score"


def _draw_line(axes: Axes, xs: NDArray[np.float64], colour: NDArray[np.float64], *, style: str, crowd: float) -> None:
    """Draw one trial as a smooth curve that is horizontal at the axes, so that crossings can be followed."""
    steps = np.linspace(0, 1, 25)
    x = np.linspace(0, len(xs) - 1, 24 * (len(xs) - 1) + 1)
    ease = (steps * steps * (3 - 2 * steps))[:-1]
    between = [left + (right - left) * ease for left, right in itertools.pairwise(xs)]
    axes.plot(
        x,
        np.concatenate([*between, xs[-1:]]),
        color=QUIET if style == "without a score" else colour,
        linestyle=_DASHES[style],
        linewidth=(1.9 if style == "finished" else 1.3) * (0.5 + 0.5 * crowd),
        alpha=0.1 + 0.9 * crowd,
        solid_capstyle="round",
    )


def _draw_ticks(axes: Axes, x: int, scale: _Scale, *, right: bool) -> None:
    for height, text in scale.ticks:
        axes.plot([x - 0.02, x + 0.02], [height, height], color="#444444", linewidth=1, zorder=900)
        axes.text(
            x + (0.12 if right else -0.05),
            height,
            text,
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            parse_math=False,
            path_effects=_HALO,
            zorder=1000,
        )


def _draw_score_strip(axes: Axes, x: int) -> None:
    """The colours of lines beside the axis of scores."""
    axes.imshow(
        np.linspace(0, 1, 128)[:, None],
        cmap=_colour_map(),
        extent=(x + 0.02, x + 0.09, 0, 1),
        origin="lower",
        aspect="auto",
        zorder=800,
    )


def _colour_map() -> Colormap:
    # The palest colours of the map are invisible on white.
    return ListedColormap(colormaps["YlGnBu"](np.linspace(0.25, 1, 256)))


def _colours(scores: Sequence[float | None]) -> NDArray[np.float64]:
    """(n, 4) colour of each score; of a single one the darkest."""
    known = [score for score in scores if score is not None]
    lowest, highest = min(known, default=0.0), max(known, default=0.0)
    shares = [1.0 if score is None or highest == lowest else (score - lowest) / (highest - lowest) for score in scores]
    return np.asarray(_colour_map()(np.array(shares, dtype=np.float64)))


def _header(name: str) -> str:
    """Wrap a name into lines of about 15 characters, after dots and underscores."""
    lines = [""]
    for part in re.findall(r"[^._]*[._]?", name):
        if lines[-1] and len(lines[-1] + part) > 15:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _spaced(x: int, count: int) -> float:
    """Height of one of `count` names, with half a step of room at both ends."""
    return (x + 0.5) / count
