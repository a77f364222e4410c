"""HTML report of a paired comparison, for readers who do not know this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray.evaluation.paired import PairedComparison
from twostream_ray.runs.score.html_page import (
    Markup,
    element,
    html_page,
    items,
    number_cards,
    paragraph,
    picture,
    table,
)

if TYPE_CHECKING:
    from twostream_ray.runs.score.compare import Comparison, DiscordantClip

_SIGNIFICANT_P = 0.05
"""Significance level, by convention."""


def compare_page(found: Comparison, shown: Sequence[DiscordantClip], *, pictures: Mapping[int, Path]) -> bytes:
    """The page.

    Args:
        found: the comparison.
        shown: clips to show.
        pictures: a PNG of each, by its position, where there is one.
    """
    paired, about = found.paired, found.first.about
    return html_page(
        f"Model B against model A on split {about.split}",
        paragraph(
            f"Both models scored the same {found.coverage()}. Clips that both get right, or both wrong, do not show "
            f"which one is better; {paired.only_first + paired.only_second} discordant clips do."
        ),
        number_cards(
            [
                ("B - A, top-1", f"{100 * paired.difference:+.2f}", "percentage points"),
                ("only A is right", str(paired.only_first), "clips"),
                ("only B is right", str(paired.only_second), "clips"),
                ("McNemar's exact p", f"{paired.mcnemar_p:.2g}", "of this imbalance by chance"),
            ]
        ),
        paragraph(_meaning(paired)),
        *[paragraph(f"Note: {note}.") for note in found.notes],
        table(
            ("", "A", "B"),
            [
                ("model", found.first.about.model, found.second.about.model),
                ("protocol", str(found.first.about.protocol["name"]), str(found.second.about.protocol["name"])),
                ("top-1", f"{paired.first_top1:.2%}", f"{paired.second_top1:.2%}"),
                ("mean class", f"{paired.first_mean_class:.2%}", f"{paired.second_mean_class:.2%}"),
                ("scores", found.first.uri, found.second.uri),
            ],
        ),
        *_intervals(paired),
        *_classes(found),
        *_clips(found, shown, pictures=pictures),
        element("h2", "Definitions"),
        items(
            [
                "discordant clips: those that only one of the two gets right.",
                "McNemar's exact p: the probability of at least this imbalance among the discordant clips if neither "
                "model is better, as with a fair coin; two-sided. It assumes independent clips.",
                "95 % interval of the difference: paired BCa bootstrap with 2,000 resamples of clips, or groups, with "
                "both models' predictions on each.",
                "mean class: mean of the accuracies of the classes that have a clip in this split.",
            ]
        ),
    )


def _meaning(paired: PairedComparison) -> str:
    """Conclusion from the interval and p, in a sentence."""
    decisive = paired.over_groups or paired.over_clips
    low, high = decisive.top1
    units = "clips" if paired.over_groups is None else f"{decisive.num_units} groups of clips"
    few = "" if decisive.is_trusted else f" But {decisive.num_units} are few, so this is only a rough answer."
    if low > 0 or high < 0:
        better, worse = ("B", "A") if low > 0 else ("A", "B")
        doubt = "" if paired.mcnemar_p < _SIGNIFICANT_P else " McNemar's test alone would not show it."
        return f"{better} is better than {worse}: the interval of the difference over {units} excludes 0.{doubt}{few}"
    return f"These clips do not show which one is better: the interval of the difference over {units} includes 0.{few}"


def _intervals(paired: PairedComparison) -> list[Markup]:
    rows = []
    for one in (paired.over_clips, paired.over_groups):
        if one is not None:
            ends = (f"[{100 * low:+.2f}, {100 * high:+.2f}]" for low, high in (one.top1, one.mean_class))
            rows.append((f"{one.num_units} {'clips' if one.over == 'clips' else 'groups of clips'}", *ends))
    return [
        element("h2", "Uncertainty of the difference"),
        paragraph("95 % intervals of B - A in percentage points. Clips of one person, scene or source form a group."),
        table(("resampled", "top-1", "mean class"), rows),
    ]


def _classes(found: Comparison) -> list[Markup]:
    names = found.first.about.classes
    rows = sorted(found.paired.classes, key=lambda row: (-abs(row.difference), row.label))
    return [
        element("h2", "By class"),
        paragraph("Largest differences first; click a column to sort by it."),
        table(
            ("class", "clips", "A right", "B right", "B - A"),
            [
                (
                    names[row.label],
                    (str(row.num_clips), row.num_clips),
                    (str(row.first_right), row.first_right),
                    (str(row.second_right), row.second_right),
                    (f"{row.difference:+.1%}", row.difference),
                )
                for row in rows
            ],
            sortable=True,
        ),
    ]


def _clips(found: Comparison, shown: Sequence[DiscordantClip], *, pictures: Mapping[int, Path]) -> list[Markup]:
    if not shown:
        return []
    rows = []
    for clip in shown:
        image = pictures.get(clip.position)
        cells: list[str | tuple[str, float]] = [] if not pictures else [
            "" if image is None else picture(image, shows=f"middle frame of {clip.clip_id}")
        ]  # fmt: skip
        cells += [
            clip.clip_id,
            clip.name,
            f"{clip.first} ({clip.first_probability:.0%})",
            f"{clip.second} ({clip.second_probability:.0%})",
        ]
        rows.append(cells)
    columns = ("clip", "class", "A predicts (p of the class)", "B predicts (p of the class)")
    return [
        element("h2", "Clips on which they differ most"),
        paragraph(
            f"{len(shown)} of {len(found.discordant)} discordant clips, by the difference of the two probabilities of "
            "the true class; compare.json lists all of them."
        ),
        table(columns if not pictures else ("middle frame", *columns), rows),
    ]
