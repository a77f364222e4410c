from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.evaluation.report import report_on
from twostream_ray.runs.score.evaluate import Evaluation, record_evaluation
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.tracking import TrackingConfig, comparable_measurement
from twostream_ray.tracking.connection import client_for


def test_only_a_registered_version_can_be_recorded() -> None:
    for model in ("directory", "s3://bucket/model", "runs:/0a/model", "models:/two-stream"):
        with pytest.raises(ConfigError, match="model must be models:/NAME/VERSION or models:/NAME@ALIAS"):
            EvaluateConfig(model=model, shards="shards", record=True)
    for model in ("models:/two-stream/7", "models:/two-stream@champion"):
        assert EvaluateConfig(model=model, shards="shards", record=True).record


@pytest.mark.slow
def test_an_evaluation_is_recorded_with_its_version(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    client = client_for(config.resolved_uri())
    client.create_registered_model("a model")
    client.create_model_version("a model", source="s3://nowhere/model", run_id=None)
    scores, labels = np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 2])
    evaluation = Evaluation(
        report=report_on(scores, labels, classes=("a", "b", "c"), n_expected=4),
        scores=scores,
        labels=labels,
        clip_ids=("1", "2", "3"),
        split="test",
        manifest_hash="0a" * 32,
        package=cast("Any", None),
    )
    record_evaluation(evaluation, "models:/a model/1", config=config)
    assert comparable_measurement("a model", 1, config=config) == evaluation.measurement()
    assert client.get_model_version("a model", "1").tags["test.top1"] == "0.6667 (3 of 4 clips)"
