from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twostream_ray.cli import main
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig, settings_from
from twostream_ray.settings.names import require_name
from twostream_ray.tracking import TrackingConfig

NO_NAMES = ["..", ".", "...", "../x", "a/b", "/tmp/x", "a\\b", "-x", "--name", ".hidden", "a\nb", "a\0b", "a\x1b[2J"]
NO_NAMES += ["a\u202eb", "a\u200bb", "a\u2028b", "\udcff", " a", "a ", "x" * 101, "ü" * 51, "\t"]

DATA = DataConfig(shards="s", validation_split="val")
OWNERS: dict[str, Callable[[str], Any]] = {
    "a run": lambda name: ExperimentConfig(name=name, data=DATA),
    "a search": lambda name: TuneConfig(name=name, data=DATA, search=SearchConfig(space={"seed": [1]})),
    "a head": lambda name: CatalogConfig(root="x", name=name),
    "a registered model": lambda name: TrackingConfig(model_name=name),
    "a search to resume": lambda name: settings_from([f"--resume={name}"]),
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_would_become_a_path_or_an_option_is_no_name(owner: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a word without .*, got '") as refused:
        OWNERS[owner](name)
    assert len(str(refused.value)) < 300 and str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["a", "run.2", "x-1_b", "läufe", "跑步", "7", "a:b", "_x", "x" * 100, "x[1]"])
def test_what_people_call_their_runs_is_a_name(name: str) -> None:
    require_name(name, setting="name")


def test_a_model_may_have_blanks_in_its_name_and_a_run_may_not() -> None:
    assert TrackingConfig(model_name="two stream").model_name == "two stream"
    with pytest.raises(ConfigError, match="without blanks, slashes"):
        ExperimentConfig(name="two stream", data=DATA)


@pytest.mark.parametrize(
    ("data_set", "name"),
    [
        ("kitchen", "kitchen"),
        ("", "two-stream"),
        ("ucf101-hmdb51", "ucf101-hmdb51"),
        ("a+b:c", "a_b_c"),
        ("läufe", "läufe"),
    ],
)
def test_a_registered_model_is_called_as_its_data_set_unless_it_is_named(data_set: str, name: str) -> None:
    assert TrackingConfig().registered_name(data_set) == name
    assert TrackingConfig(model_name=name).registered_name() == name
    assert TrackingConfig(model_name="mine").registered_name(data_set) == "mine"


@pytest.mark.parametrize("experiment", ["", "  ", "a\nb", "a\0", "x" * 501])
def test_an_experiment_of_mlflow_is_a_printable_name(experiment: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.experiment must be a printable name"):
        TrackingConfig(experiment=experiment)


@pytest.mark.parametrize("verb", ["train", "tune"])
@pytest.mark.parametrize("name", ["..", "-x", "a/../../b"])
def test_the_command_refuses_it_in_one_line_and_writes_nothing(
    verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    search = ["--data.validation_split=val", '--search.space={"seed": [1]}'] if verb == "tune" else []
    assert main([verb, f"--name={name}", "--data.shards=s", "--storage=runs", *search]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "name must be a word" in line
    assert list(tmp_path.iterdir()) == []
