"""HTML report of an evaluation, for readers who do not know this package."""

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
    html_page,
    items,
    number_cards,
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
    """A misclassified clip."""

    clip_id: str
    """Name of the clip."""
    name: str
    """Its class."""
    taken_for: str
    """The predicted class."""
    probability: float
    """Of the predicted class, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class MeasuredOn:
    """What was evaluated: model, data, protocol and code."""

    model: str
    """The model, as named by the user."""
    shards: str
    """URI of the shards."""
    manifest_hash: str
    """sha256 of the data's manifest."""
    split: str
    """The scored split."""
    protocol: str
    """Which views of a clip were scored and how they were averaged, in a sentence."""
    command: str
    """The command that repeats the evaluation."""
    commit: str | None
    """Git commit of the code; None outside a repository."""
    quarantined: Sequence[Mapping[str, str]]
    """clip_id, uri and reason of the split's quarantined clips, as far as known."""
    calibrated: str = ""
    """Effect of a temperature fitted on validation clips, in a sentence; empty without one."""


def confident_mistakes(
    probabilities: NDArray[np.floating],
    predicted: NDArray[np.integer],
    labels: NDArray[np.integer],
    clip_ids: Sequence[str],
    *,
    classes: Sequence[str],
    num_mistakes: int = _MOST_MISTAKES,
) -> list[Mistake]:
    """Misclassified clips with the highest probability of the predicted class; takes (N, K), (N,), (N,), N names."""
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
        measured: what was evaluated.
        mistakes: the most confident ones.
        confusion: a PNG of the confusion matrix.
        files: a scratch folder for plots.
    """
    return html_page(
        f"Results on split {measured.split}",
        *_overview(report, measured),
        *_intervals(report),
        *_data_sets(report),
        *_classes(report, files=files),
        element("h2", "Confusions"),
        picture(confusion, shows="confusion matrix: true classes in rows, predicted classes in columns"),
        paragraph("The most frequent mistakes:") if report.most_confused() else paragraph("There is no mistake."),
        items(pair.sentence() for pair in report.most_confused()),
        *_mistakes(mistakes),
        *_calibration(report, measured, files=files),
        *_quarantine(report, measured),
        *_definitions(report),
        element("h2", "How to repeat this evaluation"),
        element("pre", measured.command),
        paragraph(
            f"Data manifest {measured.manifest_hash[:12]}, code commit {measured.commit or 'unknown'}. The scores of "
            "every view of every clip are in the folder scores beside this page: other averages and comparisons can be "
            "computed from them without running a network.",
            quiet=True,
        ),
    )


def _overview(report: Report, measured: MeasuredOn) -> list[Markup]:
    shown = [("top-1", report.top1, "clips whose best class is the true one")]
    if report.top5 is not None:
        shown.append(("top-5", report.top5, "clips with the true class among the 5 best"))
    shown.append(("mean class", report.mean_class, "mean of the classes' accuracies"))
    cards = [(name, f"{value:.2%}", what) for name, value, what in shown]
    if report.reliability is not None:
        cards.append(("calibration error", f"{report.reliability.ece:.2%}", "mean error of probabilities"))
    return [
        paragraph(
            f"Accuracy of a network that recognises the action in a video, on {report.coverage} of split "
            f"{measured.split}, on which it should not have been trained."
        ),
        number_cards(cards),
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
        element("h2", "Uncertainty of these numbers"),
        paragraph(
            "95 % intervals in percent: for about 95 of 100 such test sets the interval would contain the true value."
        ),
        table(("resampled", "top-1", "top-5", "mean class"), rows),
        items(notes),
    ]


def _meaning(one: MetricIntervals) -> str:
    few = "" if one.is_trusted else f" {one.num_units} are few, so this interval is rough."
    if one.over == "clips":
        return (
            "Over clips: how much the number would vary with other clips like these, if clips were independent of each "
            f"other.{few}"
        )
    return (
        "Over groups: clips of one person, scene or source tend to be right or wrong together, so whole groups are "
        f"resampled. If this interval is wider, it is the one to trust.{few}"
    )


def _data_sets(report: Report) -> list[Markup]:
    if not report.heads:
        return []
    rows = [(head.name, head.to_text()) for head in report.heads]
    return [element("h2", "By data set"), table(("data set", "metrics"), rows)]


def _classes(report: Report, *, files: Path) -> list[Markup]:
    rows = report.per_class()
    present = [row for row in rows if row.num_clips]
    path = files / "classes.png"
    visualize.class_accuracies_picture(
        np.array([row.num_correct for row in rows]),
        np.array([row.num_clips for row in rows]),
        np.array([row.interval for row in rows]),
        report.classes,
        path,
    )
    weakest = sorted(present, key=lambda row: row.num_correct / row.num_clips)
    absent = len(rows) - len(present)
    return [
        element("h2", "By class"),
        paragraph(
            "Weakest first; click a column to sort by it. Intervals (Wilson) are of this class's clips only, which are "
            "assumed to be independent."
            + (f" {absent} of {len(rows)} classes have no clip in this split and are left out." if absent else "")
        ),
        table(
            ("class", "right", "clips", "accuracy", "95 % interval", "most often predicted as"),
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
            "Misclassified clips with the highest probability of the predicted class. They are worth watching: some "
            "may have a wrong label."
        ),
        table(
            ("clip", "class", "predicted", "probability"),
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
        element("h2", "Calibration of the probabilities"),
        paragraph(
            "Clips by the probability of their best class. Where bars reach the dashed line, a class given 80 % is "
            "right in 80 of 100 clips; below it the network is overconfident, above it underconfident. The expected "
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
        element("h2", "Quarantined clips"),
        paragraph(
            f"{missing} of the split's {report.n_expected} clips are in quarantine: they could not be decoded or were "
            "refused. All numbers here are of the other clips; if the quarantined ones were all wrong, top-1 would be "
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
        "mean class": f"{report.mean_class_definition()}; it weights rare classes like frequent ones",
        "95 % interval": "BCa bootstrap with 2,000 resamples of clips, or groups, with replacement",
        "expected calibration error": (
            "mean over clips of |share right - mean probability| of their bin, of 15 bins of equal width (Guo et al. "
            "2017)"
        ),
        "n of N clips": "n were scored, each once; N are in the split, including quarantined ones",
    }
    return [
        element("h2", "Definitions"),
        items(Markup(f"{element('b', name)}: {escaped(meaning)}") for name, meaning in terms.items()),
    ]
