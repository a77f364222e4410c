"""Results page of an evaluation: one HTML file for readers who have never seen the tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostream_ray import visualize
from twostream_ray.evaluation.intervals import MetricIntervals
from twostream_ray.evaluation.report import Report
from twostream_ray.runs.score.html_page import (
    Markup,
    element,
    escaped,
    figures,
    html_page,
    items,
    paragraph,
    picture,
    table,
)

RESULTS = "results.html"
"""The page's file name."""

_MOST_QUARANTINED = 50
_MOST_MISTAKES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A clip that is taken for another class."""

    clip_id: str
    """Name of the clip."""
    name: str
    """Its class."""
    taken_for: str
    """The class it was taken for."""
    probability: float
    """Of that class, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class MeasuredOn:
    """What was measured, in words that need no tool."""

    model: str
    """The model as it was named."""
    shards: str
    """Where the data are."""
    manifest_hash: str
    """sha256 of the data's manifest."""
    split: str
    """The split that was scored."""
    protocol: str
    """What was shown of a clip and averaged, in a sentence."""
    command: str
    """What measures it again."""
    commit: str | None
    """Git commit of the code; None outside a repository."""
    quarantined: Sequence[Mapping[str, str]]
    """clip_id, uri and reason of the split's clips that could not be used, where that is known."""
    calibrated: str = ""
    """What a temperature that was fitted on validation clips does, in a sentence; empty where none was."""


def confident_mistakes(
    probabilities: NDArray[np.floating],
    predicted: NDArray[np.integer],
    labels: NDArray[np.integer],
    clip_ids: Sequence[str],
    *,
    classes: Sequence[str],
    num_mistakes: int = _MOST_MISTAKES,
) -> list[Mistake]:
    """The wrong clips whose predicted class has the highest probability; (N, K), (N,), (N,), N names."""
    wrong = np.flatnonzero(predicted != labels)
    sure = probabilities[wrong, predicted[wrong]]
    order = wrong[np.argsort(-sure, kind="stable")][:num_mistakes]
    return [
        Mistake(
            clip_id=str(clip_ids[row]),
            name=classes[labels[row]],
            taken_for=classes[predicted[row]],
            probability=float(probabilities[row, predicted[row]]),
        )
        for row in order
    ]


def results_page(
    report: Report, measured: MeasuredOn, *, mistakes: Sequence[Mistake], confusion: Path, files: Path
) -> bytes:
    """The page.

    Args:
        report: the metrics.
        measured: what they are of.
        mistakes: the most confident ones.
        confusion: a picture of the confusion matrix.
        files: a folder for pictures on the way.
    """
    return html_page(
        f"Results on split {measured.split}",
        *_overview(report, measured),
        *_intervals(report),
        *_data_sets(report),
        *_classes(report, files=files),
        element("h2", "What is taken for what"),
        picture(confusion, shows="confusion matrix: true classes in rows, predicted classes in columns"),
        paragraph("The most frequent mistakes:") if report.most_confused() else paragraph("There is no mistake."),
        items(pair.sentence() for pair in report.most_confused()),
        *_mistakes(mistakes),
        *_calibration(report, measured, files=files),
        *_quarantine(report, measured),
        *_definitions(report),
        element("h2", "How to measure it again"),
        element("pre", measured.command),
        paragraph(
            f"Data manifest {measured.manifest_hash[:12]}, code commit {measured.commit or 'unknown'}. The scores of "
            "every view of every clip are in the folder scores beside this page: other averages and comparisons are "
            "computed from them, without a network.",
            quiet=True,
        ),
    )


def _overview(report: Report, measured: MeasuredOn) -> list[Markup]:
    shown = [("top-1", report.top1, "clips whose best class is right")]
    if report.top5 is not None:
        shown.append(("top-5", report.top5, "clips with the true class among the 5 best"))
    shown.append(("mean class", report.mean_class, "mean of the classes' accuracies"))
    cards = [(name, f"{value:.2%}", what) for name, value, what in shown]
    if report.reliability is not None:
        cards.append(("calibration error", f"{report.reliability.ece:.2%}", "how far probabilities are off"))
    return [
        paragraph(
            f"A network that names the action in a video was shown {report.coverage} of split {measured.split}, on "
            "which it should not have been trained, and this is how often it was right."
        ),
        figures(cards),
        table(
            ("what", "which"),
            [
                ("model", measured.model),
                ("data", measured.shards),
                ("split", measured.split),
                ("clips", report.coverage),
                ("classes", f"{len(report.classes)}"),
                ("protocol", measured.protocol),
            ],
        ),
    ]


def _intervals(report: Report) -> list[Markup]:
    if not report.intervals:
        return []
    rows, notes = [], []
    for one in report.intervals:
        what = "clips" if one.over == "clips" else "groups of clips"
        ends = (one.top1, one.top5, one.mean_class)
        rows.append((f"{one.num_units} {what}", *("-" if end is None else end.to_text() for end in ends)))
        notes.append(_meaning(one))
    return [
        element("h2", "How sure these numbers are"),
        paragraph(
            "95 % intervals in percent: of 100 such test sets, about 95 would give intervals that hold the truth."
        ),
        table(("another draw of", "top-1", "top-5", "mean class"), rows),
        items(notes),
    ]


def _meaning(one: MetricIntervals) -> str:
    few = "" if one.is_trusted else f" {one.num_units} are few for this: take it as a rough one."
    if one.over == "clips":
        return (
            "Over clips: how far the number would move with other clips like these, if each clip were independent of "
            f"the others.{few}"
        )
    return (
        "Over groups: clips of one person, scene or source are right or wrong together, so whole groups are drawn. "
        f"Where this interval is wider it is the honest one.{few}"
    )


def _data_sets(report: Report) -> list[Markup]:
    if not report.heads:
        return []
    rows = [(head.name, head.to_text()) for head in report.heads]
    return [element("h2", "By data set"), table(("data set", "metrics"), rows)]


def _classes(report: Report, *, files: Path) -> list[Markup]:
    rows = report.per_class()
    there = [row for row in rows if row.num_clips]
    path = files / "classes.png"
    visualize.class_accuracies_picture(
        np.array([row.num_correct for row in rows]),
        np.array([row.num_clips for row in rows]),
        np.array([row.interval for row in rows]),
        report.classes,
        path,
    )
    weakest = sorted(there, key=lambda row: row.num_correct / row.num_clips)
    absent = len(rows) - len(there)
    return [
        element("h2", "By class"),
        paragraph(
            "Weakest first; a click on a column sorts by it. Intervals are of this class's clips alone, taken for "
            "independent (Wilson)."
            + (f" {absent} of {len(rows)} classes have no clip in this split and are left out." if absent else "")
        ),
        table(
            ("class", "right", "clips", "accuracy", "95 % interval", "most often taken for"),
            [
                (
                    row.name,
                    (str(row.num_correct), row.num_correct),
                    (str(row.num_clips), row.num_clips),
                    (f"{row.accuracy or 0:.1%}", row.accuracy or 0.0),
                    (row.interval.to_text(), row.interval.low),
                    row.taken_for or "-",
                )
                for row in weakest
            ],
            sortable=True,
        ),
        picture(path, shows="accuracy of each class with its interval, weakest first"),
    ]


def _mistakes(mistakes: Sequence[Mistake]) -> list[Markup]:
    if not mistakes:
        return []
    return [
        element("h2", "The most confident mistakes"),
        paragraph(
            "Wrong clips that the network was surest of. They are worth watching: some of them turn out to be labelled "
            "wrongly."
        ),
        table(
            ("clip", "class", "taken for", "probability"),
            [(one.clip_id, one.name, one.taken_for, (f"{one.probability:.1%}", one.probability)) for one in mistakes],
        ),
    ]


def _calibration(report: Report, measured: MeasuredOn, *, files: Path) -> list[Markup]:
    if report.reliability is None:
        return []
    bins = report.reliability.bins
    path = files / "reliability.png"

    def known(values: Sequence[Any]) -> list[float]:
        return [np.nan if value is None else value for value in values]

    visualize.reliability_picture(
        known([one.confidence for one in bins]),
        known([one.accuracy for one in bins]),
        [one.num_clips for one in bins],
        path,
    )
    return [
        element("h2", "Whether its probabilities can be believed"),
        paragraph(
            "Clips by the probability of their best class. Where bars reach the dashed line, a class given 80 % is "
            "right in 80 of 100 clips; below it the network is too sure, above it not sure enough. The expected "
            f"calibration error, {report.reliability.ece:.2%}, is the mean distance (orange) over all clips."
        ),
        picture(path, shows="reliability diagram: share of right clips by the probability of the best class"),
        *([paragraph(f"With a {measured.calibrated}.")] if measured.calibrated else []),
    ]


def _quarantine(report: Report, measured: MeasuredOn) -> list[Markup]:
    missing = report.n_expected - report.n_evaluated
    if not missing:
        return []
    named = list(measured.quarantined)
    shown = named[:_MOST_QUARANTINED]
    rest = missing - len(shown)
    content = [
        element("h2", "Clips that could not be used"),
        paragraph(
            f"{missing} of the split's {report.n_expected} clips are in quarantine: they could not be decoded or were "
            "refused. Every number here is of the other clips alone; if all of these were wrong, top-1 would be "
            f"{report.top1 * report.n_evaluated / report.n_expected:.2%}."
        ),
    ]
    if shown:
        content.append(
            table(("clip", "reason"), [(str(one.get("clip_id", "")), str(one.get("reason", ""))) for one in shown])
        )
    if rest and shown:
        content.append(paragraph(f"and {rest} more", quiet=True))
    return content


def _definitions(report: Report) -> list[Markup]:
    terms = {
        "top-1": "share of clips whose best class is the true one",
        "top-5": "share of clips whose true class is among the 5 best",
        "mean class": f"{report.mean_class_definition()}; it weighs rare classes like frequent ones",
        "95 % interval": "bootstrap: BCa quantiles of 2,000 draws of clips, or groups, with replacement",
        "expected calibration error": (
            "mean over clips of |share right - mean probability| of their bin, of 15 bins of equal width (Guo et al. "
            "2017)"
        ),
        "n of N clips": "n were scored, each once; N are in the split, those in quarantine among them",
    }
    return [
        element("h2", "Definitions"),
        items(Markup(f"{element('b', name)}: {escaped(meaning)}") for name, meaning in terms.items()),
    ]
