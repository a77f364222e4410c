"""Report of a search: result, tables and plots, and the description of its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twostream_ray import storage, tracking, visualize
from twostream_ray.errors import ConfigError
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.score.publish import Published
from twostream_ray.runs.search.records import Spent, TrialRecord, as_csv, as_list
from twostream_ray.storage import json_files
from twostream_ray.storage.temporary_folders import temporary_folder

STATUS_TAG = "twostream.status"
"""MLflow tag of a trial that says how it ended."""
BEST_SCORE = "best_val_top1"
"""MLflow metric of a search and of each of its trials: the best top-1 on the validation split."""

_REPORT_SCHEMA = json_files.record(
    {
        "gpus_per_trial": {"type": "number", "minimum": 0},
        "used_up": {"type": "boolean"},
        "verdict": {"type": "string"},
    },
    others=True,
)


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The result of a search."""

    records: list[TrialRecord]
    """All trials, in order of proposal."""
    best: TrialRecord
    """The most accurate trial on the validation split."""
    spent: Spent
    """The spent budget."""
    ended: str
    """Why it ended: all trials were done, or which budget was spent."""
    decoded: int
    """Decoded clips, over all trials and epochs."""
    shown: int
    """Clips that the trials were trained and validated on, each counted once per epoch."""
    refused: dict[str, str]
    """Signature of invalid settings -> why they are; of this call only."""
    published: Published | None
    """The best trial's evaluation on the validation split and its registered version; None if an earlier call, even
    one with a smaller budget, had the same best trial."""
    verdict: str
    """Result of the comparison with the champion, in a sentence; empty if nothing was registered."""
    model_name: str
    """Name of the registered model."""
    done_before: bool
    """Whether an earlier call had finished the search, so that nothing was trained."""
    longer: str
    """The command that trains the best trial longer; empty for a search of an earlier version of this package."""


def read_report(folder: SearchFolder) -> dict[str, Any] | None:
    """Content of the report.json of the search in `folder`, as JSON types; None before its end.

    Raises:
        ConfigError: it is damaged.
    """
    if not storage.exists(folder.report):
        return None
    stored = json_files.read_json(
        folder.report,
        _REPORT_SCHEMA,
        what=f"the report of {folder.what}",
        way_out="delete it and run the same command again, which evaluates the best trial once more",
        error=ConfigError,
        metrics=True,
    )
    return dict(stored)


def write_report(
    report: SearchReport,
    *,
    folder: SearchFolder,
    run: tracking.RunHandle,
    split: str,
    gpus_per_trial: float,
    used_up: bool,
    logarithmic: Mapping[str, bool],
) -> None:
    """Write tables and plots to a search's folder and MLflow run, then the report.json that marks it as finished.

    `logarithmic` maps settings that were drawn from a range to whether the scale was logarithmic.

    Raises:
        StorageError: the folder cannot be written.
    """
    best, spent = report.best, report.spent
    with temporary_folder() as name:
        scratch = Path(name)
        (scratch / "trials.csv").write_text(as_csv(report.records))
        storage.write_json(str(scratch / "trials.json"), [record.row() for record in report.records])
        tables = [scratch / "trials.csv", scratch / "trials.json"]
        pictures = _draw_pictures(report.records, scratch, logarithmic=logarithmic)
        for path in (*tables, *pictures.values()):
            storage.write_bytes(storage.join(folder.uri, path.name), path.read_bytes())
        tracking.log_artifacts(run, tables)
        tracking.log_pictures(run, pictures)
    values = {
        BEST_SCORE: best.score or 0.0,
        "clips_decoded": float(report.decoded),
        "clips_shown": float(report.shown),
        **{name: float(value) for name, value in asdict(spent).items()},
    }
    tracking.log_metrics(run, values, step=spent.trials)
    tags = {"twostream.best_trial": best.name, STATUS_TAG: f"ended: {report.ended}"}
    tags |= {"twostream.registered": report.verdict} if report.verdict else {}
    tracking.tag_run(run, tags | {tracking.DESCRIPTION: _described(report, split=split)})
    stored = {
        "best": best.row(),
        "ended": report.ended,
        "spent": asdict(spent),
        "verdict": report.verdict,
        "gpus_per_trial": gpus_per_trial,
        "used_up": used_up,
    }
    storage.write_json(folder.report, stored)


def _described(report: SearchReport, *, split: str) -> str:
    """Description of the search in Markdown, for its MLflow run."""
    spent = report.spent
    return (
        f"Ended: {report.ended}; {spent.epochs} epochs, {spent.hours:.2f} h, {spent.gpu_hours:.2f} GPU-hours. "
        f"Clips decoded: {report.decoded:,}, without sharing them between trials {report.shown:,}."
        f"\n\n**Best top-1 on `{split}`.** {report.verdict}\n\n{as_list(report.records)}"
    )


def _draw_pictures(records: Sequence[TrialRecord], folder: Path, *, logarithmic: Mapping[str, bool]) -> dict[str, Path]:
    """Plots of the trials by name."""
    outcomes = [record.outcome() for record in records]
    pictures = {name: folder / f"{name}.png" for name in ("parallel_coordinates", "importance", "pareto")}
    visualize.parallel_coordinates_picture(outcomes, pictures["parallel_coordinates"], logarithmic=logarithmic)
    visualize.importance_picture(outcomes, pictures["importance"])
    visualize.pareto_picture(outcomes, pictures["pareto"])
    return pictures
