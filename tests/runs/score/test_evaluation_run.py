import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from score_tables import table_record

from twostream_ray.data.flow import FlowContract
from twostream_ray.evaluation.report import report_on
from twostream_ray.heads import heads_of
from twostream_ray.runs.score.evaluate import Evaluation, write_evaluation
from twostream_ray.runs.score.evaluation_run import log_evaluation_run, write_tables
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.tracking import TrackingConfig, list_outboxes, replay
from twostream_ray.tracking.connection import client_for

MANIFEST = "0a" * 32
CLASSES = ("a", "b, c", "d")


def evaluation() -> Evaluation:
    scores, labels = np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 2])
    return Evaluation(
        report=report_on(scores, labels, classes=CLASSES, n_expected=4),
        logits=scores,
        probabilities=scores,
        labels=labels,
        clip_ids=("1", "2", "3"),
        split="test",
        manifest_hash=MANIFEST,
        package=cast("Any", SimpleNamespace(heads=heads_of(CLASSES, ()), model=SimpleNamespace(head_classes=()))),
        about=table_record(),
    )


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_tables_have_a_row_for_each_class_and_each_clip(tmp_path: Path) -> None:
    of_classes, of_clips = write_tables(evaluation(), tmp_path)
    assert rows(of_classes)[1:] == [
        ["a", "1", "1", "1.0000", ""],
        ["b, c", "1", "1", "1.0000", ""],
        ["d", "1", "0", "0.0000", "b, c"],
    ]
    assert rows(of_clips)[1:] == [["1", "a", "a", "1"], ["2", "b, c", "b, c", "1"], ["3", "d", "b, c", "0"]]


def test_a_clip_is_taken_for_a_class_of_its_own_data_set() -> None:
    two = heads_of(("one/a", "one/b", "two/a", "two/b"), (2, 2))
    scores, labels = np.array([[1, 0, 9, 0], [9, 0, 0, 1]], np.float32), np.array([1, 3])
    clips = replace(
        evaluation(), logits=scores, labels=labels, package=cast("Any", SimpleNamespace(heads=two)), clip_ids=("1", "2")
    )
    assert clips.predicted().tolist() == [0, 3]


@pytest.mark.slow
def test_an_evaluation_is_a_run_of_its_own_also_where_mlflow_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    out = str(tmp_path / "out")
    shard_set: Any = SimpleNamespace(
        split=lambda name: [0, 1, 2],
        index=pa.table({"num_frames": [5, 6, 7]}),
        classes=CLASSES,
        quarantined={"test": 1},
        contract=FlowContract(),
        hash=MANIFEST,
        uri="s3://bucket/shards",
        data_set="kitchen",
    )
    away = TrackingConfig(uri="http://127.0.0.1:9")
    config = EvaluateConfig(model="models:/kitchen/1", shards="s3://bucket/shards", out=out, tracking=away)
    write_evaluation(evaluation(), out=out, files=tmp_path)
    log_evaluation_run(config, evaluation(), shard_set, files=tmp_path)

    (outbox,) = list_outboxes(out)
    here = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert replay(outbox, config=here).refused == 0
    client = client_for(here.resolved_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("twostream").experiment_id])
    assert (run.info.run_name, run.info.status) == ("evaluate models:/kitchen/1 on test", "FINISHED")
    assert run.data.metrics["test_top1"] == pytest.approx(2 / 3)
    assert "top-1 66.67%" in run.data.tags["mlflow.note.content"]
    assert "Protocol validation: samples as" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["twostream.protocol"] == "validation"
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("kitchen", MANIFEST[:36])
    assert '"test": 3' in given.dataset.profile and MANIFEST in given.dataset.profile
    assert given.tags[0].value == "evaluation"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"report.json", "results.html", "per_class.csv", "per_clip.csv", "pictures"}
