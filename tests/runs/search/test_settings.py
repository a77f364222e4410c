import json
from pathlib import Path

import pytest
import yaml

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.runs.search.settings import TuneConfig, settings_from, store_settings


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    values = {
        "name": "which",
        "storage": str(tmp_path / "runs"),
        "data": {"shards": str(tmp_path / "shards"), "validation_split": "val", "lanes": 4},
        "model": {"fusion": {"method": "conv", "layers": ["relu4_3", "relu5_3"]}},
        "workers": {"num_workers": [1, 3]},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "search": {"space": {"training.learning_rate": {"low": 0.001, "high": 0.1, "log": True}}, "trials": 12},
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_search_is_taken_up_by_its_name_with_all_its_settings(recipe: Path, tmp_path: Path) -> None:
    config = settings_from(["--config", str(recipe)])
    store_settings(config, folder_uri=f"{config.storage}/which")
    again = settings_from(["--resume", "which", "--storage", config.storage])
    assert isinstance(again, TuneConfig) and again == config
    more = settings_from([f"--storage={config.storage}", "--resume=which", "--search.trials", "30"])
    assert more.search.trials == 30 and more.workers == config.workers and more.search.space == config.search.space


def test_a_password_of_the_tracking_server_is_not_written_down(recipe: Path, tmp_path: Path) -> None:
    config = settings_from(["--config", str(recipe), "--tracking.uri", "http://me:hush-hush@127.0.0.1:5000"])
    store_settings(config, folder_uri=f"{config.storage}/which")
    kept = (tmp_path / "runs/which/settings.json").read_text()
    assert "hush" not in kept and json.loads(kept)["tracking"]["uri"] is None


def test_a_search_that_never_began_cannot_be_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--resume wants the name of an earlier search"):
        settings_from(["--resume", "absent", "--storage", str(tmp_path)])
    assert main(["tune", "--resume", "absent", "--storage", str(tmp_path)]) == 2
    assert "check --storage" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 5000, '{"name": 1', "\x00", '{"unheard_of": 1}'])
def test_damaged_settings_of_a_search_are_named_in_one_line(
    recipe: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings_from(["--config", str(recipe)])
    store_settings(config, folder_uri=f"{config.storage}/which")
    (tmp_path / "runs/which/settings.json").write_text(content)
    assert main(["tune", "--resume", "which", "--storage", config.storage]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "settings.json" in line and len(line) < 600
