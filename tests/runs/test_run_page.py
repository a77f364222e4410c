from dataclasses import replace
from pathlib import Path

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.experiment import ExperimentConfig, with_absolute_uris
from twostream_ray.runs.run_page import recipe_of
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking import TrackingConfig


def test_the_recipe_of_a_run_gives_its_settings_back(tmp_path: Path) -> None:
    data = DataConfig(shards="s", validation_split="val")
    config = with_absolute_uris(ExperimentConfig(name="1e3", data=data, seed=7))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_of(config, verb="train"))
    assert path.read_text().startswith("# twostream train --config recipe.yaml --name ANOTHER_NAME\n")
    assert from_arguments(ExperimentConfig, ["--config", str(path)]) == config
    assert from_arguments(ExperimentConfig, ["--config", str(path), "--name", "b"]) == replace(config, name="b")


def test_a_recipe_holds_no_secret_and_says_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush-hush")
    data = DataConfig(shards="s3://bucket/hush-hush/shards")
    config = ExperimentConfig(name="run", data=data, tracking=TrackingConfig(uri="http://bob:x/cret@host:5000"))
    text = recipe_of(config, verb="train")
    assert not [secret for secret in ("x/cret", "hush", "bob") if secret in text]
    assert "# tracking.uri is left out, as it contains a secret\n" in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    given = ["--config", str(path), "--data.shards", data.shards]
    assert from_arguments(ExperimentConfig, given) == replace(config, tracking=TrackingConfig())
