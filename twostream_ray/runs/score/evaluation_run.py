"""MLflow run of an evaluation: metrics, report, tables of classes and clips, confusion matrix."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray import storage, tracking
from twostream_ray.data.protocols import VALIDATION
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.runs.run_page import data_summary, log_data
from twostream_ray.runs.score.results_page import RESULTS
from twostream_ray.runs.score.settings import EvaluateConfig

if TYPE_CHECKING:
    from twostream_ray.runs.score.evaluate import Evaluation

REPORT, CONFUSION = "report.json", "confusion.png"
"""Files that an evaluation writes."""
RUNS = "tracking"
"""Folder below an evaluation's output for the outboxes of its MLflow runs."""


def log_evaluation(handle: tracking.RunHandle, evaluation: Evaluation, *, step: int, files: Path) -> None:
    """Log an evaluation to an MLflow run: metrics, and report.json, page, tables and plot from the folder `files`.

    Does not raise if MLflow is unreachable.
    """
    found = evaluation.metrics() | evaluation.metrics_by_head()
    metrics = {f"{evaluation.split}_{name}": value for name, value in found.items()}
    tracking.log_metrics(handle, metrics, step=step)
    tracking.log_artifacts(handle, [files / REPORT, files / RESULTS, *write_tables(evaluation, files)])
    tracking.log_pictures(handle, {"confusion": files / CONFUSION})


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write per_class.csv and per_clip.csv into a folder."""
    classes = evaluation.report.classes
    by_class = [
        (row.name, row.num_clips, row.num_correct, "" if row.accuracy is None else f"{row.accuracy:.4f}", row.taken_for)
        for row in evaluation.report.per_class()
    ]
    by_clip = [
        (clip_id, classes[label], classes[predicted], int(label == predicted))
        for clip_id, label, predicted in zip(
            evaluation.clip_ids, evaluation.labels, evaluation.predicted(), strict=True
        )
    ]
    of_classes, of_clips = folder / "per_class.csv", folder / "per_clip.csv"
    _write_csv(of_classes, ("class", "clips", "correct", "accuracy", "most_often_taken_for"), by_class)
    _write_csv(of_clips, ("clip", "class", "predicted", "correct"), by_clip)
    return [of_classes, of_clips]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def log_evaluation_run(
    config: EvaluateConfig,
    evaluation: Evaluation,
    shard_set: ShardSet,
    *,
    files: Path,
    parent: tracking.RunHandle | None = None,
) -> None:
    """Create an MLflow run for an evaluation; while MLflow is unreachable it stays in an outbox below `config.out`.

    Args:
        config: settings of the evaluation.
        evaluation: its result.
        shard_set: the data.
        files: a folder with its report.json, page and plot.
        parent: the run in which it is nested.

    Raises:
        StorageError: `config.out` cannot be written.
    """
    lineage = tracking.lineage_tags(manifest_hash=shard_set.hash, flow_contract_hash=shard_set.contract.hash)
    report = evaluation.report
    protocol = "" if evaluation.protocol == VALIDATION else f", protocol {evaluation.protocol.name}"
    handle = tracking.start_run(
        config.tracking,
        run_name=f"evaluate {config.model} on {config.split}{protocol}",
        run_uri=storage.join(storage.absolute(config.out), RUNS, uuid.uuid4().hex[:12]),
        parameters=asdict(config),
        tags=lineage
        | {
            "twostream.model": config.model,
            "twostream.protocol": evaluation.protocol.name,
            tracking.DESCRIPTION: (
                f"`{config.model}` on split `{config.split}` of {data_summary(shard_set)}.\n\n"
                f"Protocol {evaluation.protocol.describe()}.\n\n"
                f"```\n{report.to_text()}\n```"
            ),
        },
        parent=parent,
    )
    log_data(handle, shard_set, splits=(config.split,), context="evaluation")
    log_evaluation(handle, evaluation, step=0, files=files)
    tracking.finish_run(handle)
