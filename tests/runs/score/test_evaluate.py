import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from score_tables import table_record

from twostream_ray.data.protocols import ViewsConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError
from twostream_ray.evaluation.report import report_on
from twostream_ray.heads import softmax
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.score.evaluate import Evaluation, evaluate, record_evaluation
from twostream_ray.runs.score.score_table import read_table
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.tracking import TrackingConfig, comparable_measurement
from twostream_ray.tracking.connection import client_for


def test_only_a_registered_version_can_be_recorded() -> None:
    for model in ("directory", "s3://bucket/model", "runs:/0a/model", "models:/two-stream"):
        with pytest.raises(ConfigError, match="model must be models:/NAME/VERSION or models:/NAME@ALIAS"):
            EvaluateConfig(model=model, shards="shards", record=True)
    for model in ("models:/two-stream/7", "models:/two-stream@champion"):
        assert EvaluateConfig(model=model, shards="shards", record=True).is_recorded()


def test_a_registered_version_is_recorded_unless_it_is_not_wanted() -> None:
    assert EvaluateConfig(model="models:/two-stream@champion", shards="shards").is_recorded()
    assert not EvaluateConfig(model="models:/two-stream@champion", shards="shards", record=False).is_recorded()
    assert not EvaluateConfig(model="directory", shards="shards").is_recorded()


def test_only_what_champions_are_compared_by_is_recorded() -> None:
    version = "models:/two-stream/7"
    for settings in ({"protocol": "fast"}, {"views": ViewsConfig(times=9)}):
        assert not EvaluateConfig(model=version, shards="shards", **settings).is_recorded()
        with pytest.raises(ConfigError, match=r"which are of protocol validation, got (fast|validation \(changed\))"):
            EvaluateConfig(model=version, shards="shards", record=True, **settings)
    with pytest.raises(ConfigError, match="protocol must be one of validation, fast"):
        EvaluateConfig(model="directory", shards="shards", protocol="paper")


def test_an_evaluation_is_logged_where_somebody_has_spoken_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert EvaluateConfig(model="runs:/0a/model", shards="shards").is_logged()
    assert not EvaluateConfig(model="runs:/0a/model", shards="shards", record=False).is_logged()
    assert not EvaluateConfig(model="directory", shards="shards").is_logged()
    assert EvaluateConfig(model="directory", shards="s", tracking=TrackingConfig(uri="http://host")).is_logged()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert EvaluateConfig(model="directory", shards="shards").is_logged()


def two_heads(shard_set: ShardSet, folder: Path) -> str:
    """An untrained network for two data sets, each of two of the shards' classes."""
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(architecture="late", spatial=tower, temporal=tower, head_classes=(2, 2)),
        classes=shard_set.classes,
        contract=shard_set.contract,
        sampling=SamplingConfig(num_snippets=1, test_times=1),
        transforms=TransformConfig(crop_px=48),
    )
    save_model(folder, package.build(pretrained=False), package)
    return str(folder)


def test_a_model_of_two_data_sets_is_measured_on_each(shard_set: ShardSet, tmp_path: Path) -> None:
    model, out, one_worker = two_heads(shard_set, tmp_path / "model"), tmp_path / "out", WorkersConfig(num_workers=1)
    evaluation = evaluate(EvaluateConfig(model=model, shards=shard_set.uri, out=str(out), workers=one_worker))
    report = json.loads((out / "report.json").read_text())
    table = read_table(str(out))
    assert table.num_expected_by_head is not None and sum(table.num_expected_by_head) == 20
    assert [head.name for head in table.heads] == ["1", "2"]
    for number, (head, part) in enumerate(zip(report["heads"], (slice(0, 2), slice(2, 4)), strict=True)):
        rows = (table.labels // 2) == number
        own = softmax(table.logits[rows, 0, 0, part]) / 2 + softmax(table.logits[rows, 0, 1, part]) / 2
        np.testing.assert_allclose(own, evaluation.probabilities[rows, part], atol=1e-6)
        right = int((own.argmax(axis=1) == table.labels[rows] - part.start).sum())
        assert (head["name"], head["n_evaluated"], head["n_expected"]) == (str(number + 1), rows.sum(), rows.sum())
        assert head["top1"] == right / rows.sum()
        assert evaluation.metrics_by_head()[f"{head['name']}/top1"] == head["top1"]
    assert [line[:8] for line in evaluation.report.to_text().splitlines()[1:3]] == ["1   top-", "2   top-"]


@pytest.mark.slow
def test_an_evaluation_is_recorded_with_its_version(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    client = client_for(config.resolved_uri())
    client.create_registered_model("a model")
    client.create_model_version("a model", source="s3://nowhere/model", run_id=None)
    scores, labels = np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 2])
    evaluation = Evaluation(
        report=report_on(scores, labels, classes=("a", "b", "c"), n_expected=4),
        logits=scores,
        probabilities=scores,
        labels=labels,
        clip_ids=("1", "2", "3"),
        split="test",
        manifest_hash="0a" * 32,
        package=cast("Any", None),
        about=table_record(),
    )
    record_evaluation(evaluation, "models:/a model/1", config=config)
    assert comparable_measurement("a model", 1, config=config) == evaluation.measurement()
    shown = client.get_model_version("a model", "1").tags["test.top1"]
    assert shown == "0.6667 (3 of 4 clips, manifest 0a0a0a0a0a0a)"
