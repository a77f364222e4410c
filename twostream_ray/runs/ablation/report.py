"""Report of a stream ablation: a table for the terminal, in Markdown, JSON and HTML, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twostream_ray import storage, visualize
from twostream_ray.runs.ablation.settings import AblationConfig
from twostream_ray.runs.ablation.study import AblationRow
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.score.compare import verdict
from twostream_ray.runs.score.html_page import element, html_page, items, paragraph, picture, table
from twostream_ray.storage.json_files import record
from twostream_ray.storage.temporary_folders import temporary_folder

FILES = ("streams.json", "streams.md", "streams.html", "streams.png")
COLUMNS = ("network", "top-1", "95 % interval", "clips", "parameters", "against appearance alone", "p")

_SCHEMA = record({"split": {"type": "string"}, "rows": {"type": "array"}}, others=True)


def refuse_foreign(config: AblationConfig) -> None:
    """Refuse to overwrite files that another program or another study wrote, before anything is trained.

    Raises:
        ConfigError: names the file and the way out.
    """
    refuse_foreign_files(storage.absolute(config.folder), FILES, schema=_SCHEMA, verb="compare-streams")


def title(config: AblationConfig, found: Sequence[AblationRow]) -> str:
    """Heading of the table."""
    return f"What motion adds: {found[0].coverage} of split {config.data.test_split}, {config.training.epochs} epochs"


def cells(row: AblationRow) -> list[str]:
    """A row as text, one cell for each of `COLUMNS`."""
    paired = row.against_appearance
    return [
        row.network,
        f"{row.top1:.1%}",
        row.intervals.top1.to_text(),
        row.coverage,
        f"{row.parameters:,}",
        "" if paired is None else f"{100 * paired.difference:+.1f} points",
        "" if paired is None else f"{paired.mcnemar_p:.2g}",
    ]


def sentences(found: Sequence[AblationRow]) -> list[str]:
    """Conclusions from the table, and their limits, one sentence each."""
    said = [
        verdict(row.against_appearance, first=found[0].network, second=row.network)
        for row in found
        if row.against_appearance is not None
    ]
    if not found[0].intervals.is_trusted:
        said.append(
            f"note: {found[0].intervals.num_units} {found[0].intervals.over} are few, so these intervals are rough"
        )
    return said


def write(config: AblationConfig, found: Sequence[AblationRow]) -> str:
    """Write the files to the study's folder and return it.

    Raises:
        StorageError: it cannot be written.
    """
    out = storage.absolute(config.folder)
    heading = title(config, found)
    storage.write_json(storage.join(out, FILES[0]), to_dict(config, found))
    storage.write_bytes(storage.join(out, FILES[1]), markdown(heading, found).encode())
    with temporary_folder() as scratch:
        drawn = Path(scratch, FILES[3])
        top1 = {row.network: (row.top1, *row.intervals.top1) for row in found}
        visualize.intervals_picture(top1, drawn, title=heading)
        storage.write_bytes(storage.join(out, FILES[2]), page(heading, found, drawn=drawn))
        storage.write_file(storage.join(out, FILES[3]), drawn)
    return out


def to_dict(config: AblationConfig, found: Sequence[AblationRow]) -> dict[str, Any]:
    """The table as JSON types."""
    rows = []
    for row in found:
        paired = row.against_appearance
        against: dict[str, Any] | None = None
        if paired is not None:
            against = {
                "top1": paired.difference,
                "interval": (paired.over_groups or paired.over_clips).to_dict(),
                "mcnemar_p": paired.mcnemar_p,
                "only_appearance": paired.only_first,
                "only_this": paired.only_second,
            }
        rows.append(
            {
                "network": row.network,
                "run": row.run,
                "parameters": row.parameters,
                "num_clips": row.num_clips,
                "num_expected": row.num_expected,
                "top1": row.top1,
                "intervals": row.intervals.to_dict(),
                "against_appearance": against,
            }
        )
    return {"name": config.name, "split": config.data.test_split, "epochs": config.training.epochs, "rows": rows}


def markdown(heading: str, found: Sequence[AblationRow]) -> str:
    """The table as Markdown."""
    lines = [f"# {heading}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in found]
    lines += ["", *(f"- {sentence}" for sentence in sentences(found))]
    return "\n".join(lines) + "\n"


def page(heading: str, found: Sequence[AblationRow], *, drawn: Path) -> bytes:
    """The table as one HTML file, for readers who do not know this package."""
    return html_page(
        heading,
        paragraph(
            "Every network was trained on the same clips with the same budget and evaluated on the same test clips. "
            "The streams alone see RGB frames or optical flow; late fusion averages their scores; fusion joins their "
            "feature maps."
        ),
        table(COLUMNS, [cells(row) for row in found]),
        picture(drawn, shows="accuracy of each network with its 95 % interval"),
        element("h2", "Clip by clip, against appearance alone"),
        items(sentences(found)),
        element("h2", "Definitions"),
        items(
            [
                "95 % interval: BCa bootstrap with 2,000 resamples of clips, or of groups of clips that belong "
                "together. Overlapping intervals do not mean that two networks are equal: all saw the same clips.",
                "against appearance alone: difference of the two accuracies in percentage points, on the same clips.",
                "p: McNemar's exact test, two-sided: the probability of at least this imbalance among the clips that "
                "only one of the two gets right, if neither is better. It assumes independent clips.",
                "one training each: another seed gives other numbers; repeat with --seed and another --name.",
            ]
        ),
    )
