import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.next_commands import summary
from twostream_ray.runs.score.settings import EvaluateConfig, PredictConfig, PullConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.verbs.commands import parse

PARSED: dict[str, type] = {"evaluate": EvaluateConfig, "predict": PredictConfig, "pull": PullConfig}


def lines(folder: Path, uri: str | None, *, version: int | None) -> list[str]:
    """What a training that ended says."""
    config = ExperimentConfig(
        name="walks",
        data=DataConfig(shards="my shards"),
        tracking=TrackingConfig(uri=uri),
        storage=str(folder),
    )
    run = SimpleNamespace(experiment_id="1", run_id="abc")
    trained: Any = SimpleNamespace(checkpoint=f"{folder}/walks/epoch-0000", run=run)
    published: Any = SimpleNamespace(name="two-stream", version=version, evaluation=SimpleNamespace(split="test"))
    return summary(config, trained, published)


@pytest.mark.parametrize("version", [3, None])
@pytest.mark.parametrize("uri", [None, "sqlite:///elsewhere/kept here.db", "http://mlflow.example.com:5000"])
def test_what_comes_next_is_what_the_verbs_take_and_names_the_same_mlflow(
    uri: str | None, version: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = lines(tmp_path, uri, version=version)
    commands = [shlex.split(line) for line in said if line.startswith("  ")]
    assert [command[1] for command in commands] == ["evaluate", "predict", *(["pull"] if version else [])]
    for _, verb, *rest in commands:
        parsed: Any = parse(verb, PARSED[verb], rest)
        assert parsed.tracking.resolved_uri() == TrackingConfig(uri=uri).resolved_uri()
        assert parsed.model == ("models:/two-stream/3" if version else f"{tmp_path}/walks/epoch-0000")
    (page,) = [line for line in said if line.startswith("MLflow: ")]
    assert "/#/experiments/1/runs/abc" in page and ("mlflow ui" in page) == (uri is None or "sqlite" in uri)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    uri = "https://me:pass-word-1@mlflow.example.com"
    assert "pass-word-1" not in "\n".join(lines(tmp_path, uri, version=1))
    assert TrackingConfig(uri=uri).uri_option() == ""
