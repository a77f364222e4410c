"""Plots of a hyperparameter search: importance of settings, and accuracy over parameters with the Pareto front."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, PercentFormatter

from twostream_ray.visualize.figures import save
from twostream_ray.visualize.trials import (
    FEWEST_TRIALS,
    FINISHED,
    LONGEST_VALUE,
    QUIET,
    Trial,
    all_settings,
    clipped,
    count_by_status,
    number_of,
    parameters_of,
    pareto_front,
    score_of,
    setting_importance,
    short_names,
    top1_of,
    varying_settings,
    written,
)

_MOST_FRONT_LISTED = 12
_FRONT_COLOUR, _DOT_COLOUR = "#d55e00", "#0072b2"


def importance_picture(trials: Sequence[Trial], path: Path) -> None:
    """Draw the permutation importance of each setting as a PNG, with the error of the model that it is based on.

    Args:
        trials: settings and outcome of each, as `visualize.trials` says.
        path: the PNG to write.
    """
    num_scored = sum(score_of(trial) is not None for trial in trials)
    found = setting_importance(trials)
    names = list(found.settings) if found else []
    figure = Figure(figsize=(8.5, max(2.2, 1.5 + 0.34 * len(names))), dpi=110)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    if found is None:
        figure.suptitle(count_by_status(trials), fontsize=10, parse_math=False)
        said = (
            f"too few to say: {num_scored} of {len(trials)} trials have a score, at least {FEWEST_TRIALS} are needed"
            if num_scored < FEWEST_TRIALS
            else "nothing to compare: all trials with a score have the same settings"
        )
        axes.text(0.5, 0.5, said, ha="center", va="center", fontsize=10)
        axes.set_axis_off()
        save(figure, path)
        return
    learns = found.error < 0.9 * found.error_of_mean
    mean, spread = 100 * np.array(list(found.settings.values())).T
    axes.barh(range(len(names)), mean, color="#9ecae1" if learns else "#d9d9d9", height=0.7)
    axes.errorbar(mean, range(len(names)), xerr=spread, fmt="none", ecolor="#08306b", elinewidth=1.2, capsize=2.5)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(names)), labels=short_names(names), fontsize=9, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "rise of the error of predicted top-1, in points, when the setting is shuffled (± 1 s.d. over splits)",
        fontsize=9,
    )
    verdict = (
        f"{num_scored} scores: on held-out trials a forest is off by {100 * found.error:.1f} points, "
        f"their mean by {100 * found.error_of_mean:.1f}"
    )
    if not learns:
        verdict += ";\nthese trials do not show which settings matter"
    figure.suptitle(f"{count_by_status(trials)}\n{verdict}", fontsize=10, parse_math=False)
    save(figure, path)


def pareto_picture(trials: Sequence[Trial], path: Path) -> None:
    """Draw top-1 against the number of parameters as a PNG, with the front of finished trials, listed below by number.

    Args:
        trials: settings and outcome of each, as `visualize.trials` says.
        path: the PNG to write.
    """
    shown = [trial for trial in trials if score_of(trial) is not None and number_of(trial, "parameters") is not None]
    front = [shown[position] for position in pareto_front(shown)]
    listed = front[-_MOST_FRONT_LISTED:]
    rows = _front_rows(listed, names=varying_settings(trials) or all_settings(trials))
    figure = Figure(figsize=(8.5, 4.9 + 0.16 * len(rows)), dpi=110)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    counts = [parameters_of(trial) for trial in shown] or [1.0]
    if min(counts) > 0 and max(counts) > 3 * min(counts):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter("")
    _draw_trials(axes, shown)
    if front:
        corners = [(parameters_of(trial), top1_of(trial)) for trial in front]
        across, up = zip(*corners, strict=True)
        axes.step(
            [*across, max(counts)],
            [*up, up[-1]],
            where="post",
            color=_FRONT_COLOUR,
            linewidth=1.5,
            zorder=3,
            label="Pareto front of the finished",
        )
        axes.scatter(across, up, s=100, color=_FRONT_COLOUR, zorder=4)
        for number, corner in enumerate(corners[-len(listed) :], start=1):
            axes.annotate(
                str(number), corner, ha="center", va="center", fontsize=7, color="white", weight="bold", zorder=5
            )
    if shown:
        axes.legend(loc="best", fontsize=8, framealpha=0.85)
    else:
        axes.text(0.5, 0.5, "no trial has a score yet", ha="center", va="center", transform=axes.transAxes)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    low, high = (min(map(top1_of, shown)), max(map(top1_of, shown))) if shown else (0.0, 1.0)
    margin = max(0.06 * (high - low), 0.02)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("parameters of the network")
    axes.set_ylabel("top-1")
    axes.set_title(count_by_status(trials), fontsize=11, parse_math=False)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        figure.supxlabel(
            "\n".join(rows), x=0.02, ha="left", fontsize=7.5, family="monospace", parse_math=False, linespacing=1.4
        )
    save(figure, path)


def _draw_trials(axes: Axes, trials: Sequence[Trial]) -> None:
    """Draw a dot for each trial; unfinished ones are hollow."""
    for finished, label in ((False, "did not finish: last score"), (True, "finished")):
        dots = [trial for trial in trials if (trial.get("status") == FINISHED) == finished]
        if dots:
            axes.scatter(
                [parameters_of(trial) for trial in dots],
                [top1_of(trial) for trial in dots],
                s=32,
                facecolors=_DOT_COLOUR if finished else "none",
                edgecolors=_DOT_COLOUR if finished else QUIET,
                alpha=0.7,
                linewidths=1,
                label=label,
            )


def _front_rows(trials: Sequence[Trial], *, names: Sequence[str]) -> list[str]:
    """The trials of the front, numbered from 1, with the settings in which trials of the search differ."""
    rows = []
    for number, trial in enumerate(trials, start=1):
        chosen = [
            f"{short} {clipped(written(value), 2 * LONGEST_VALUE)}"
            for name, short in zip(names, short_names(names), strict=True)
            if (value := trial.get(name)) is not None
        ]
        parameters = EngFormatter(places=1, sep="").format_eng(parameters_of(trial))
        head = f"{number:>2} {top1_of(trial):>6.1%} {parameters:>7}  "
        wrapped = textwrap.wrap(
            ", ".join(chosen),
            122,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            max_lines=3,
            placeholder=" …",
        )
        rows.extend(wrapped or [head])
    return rows
