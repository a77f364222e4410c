import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ShardError
from twostream_ray.runs.experiment import ExperimentConfig, with_absolute_uris
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.search.best_recipe import has_best_recipe, longer_command, write_best_recipe
from twostream_ray.runs.search.records import TrialRecord
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.search.space import Space
from twostream_ray.settings.parser import from_arguments
from twostream_ray.storage.temporary_folders import own_folder_path
from twostream_ray.tracking import TrackingConfig

BEST = TrialRecord(
    number=3,
    name="wide-0003",
    settings={"training.learning_rate": 0.02, "model.fusion.layers": ["relu5_1"]},
    parameters=10,
    status="finished",
    history=[{"epoch": 0, "val_top1": 0.625}],
)


class Shards:
    """A shard set of two splits."""

    def split(self, name: str) -> None:
        if name not in ("train", "val"):
            raise ShardError(name)


def written(folder: Path, **change: object) -> tuple[TuneConfig, ExperimentConfig, str, list[str]]:
    """The search's settings, the trial's, the recipe, and the arguments of the command in it."""
    config = TuneConfig(
        name="wide",
        data=DataConfig(shards="shards", validation_split="val"),
        search=SearchConfig(space={"training.learning_rate": [0.02], "model.fusion.layers": [["relu5_1"]]}),
        storage=str(folder / "my runs"),
    )
    config = with_absolute_uris(replace(config, **change))
    place = SearchFolder.of(config)
    trial = Space(config.search.space, base=config).experiment(BEST.settings, name=BEST.name, storage=place.uri)
    assert not has_best_recipe(place)
    write_best_recipe(BEST, trial, config=config, shard_set=cast(ShardSet, Shards()), folder=place)
    assert has_best_recipe(place)
    text = Path(place.uri, "best.yaml").read_text()
    (command,) = re.findall("^# (twostream train .*)$", text, re.MULTILINE)
    assert command == longer_command(BEST, trial, folder=place)
    return config, trial, text, shlex.split(command)[2:]


def test_the_best_recipe_is_what_the_trial_was_trained_with_beside_the_search_and_longer(tmp_path: Path) -> None:
    config, trial, text, arguments = written(tmp_path)
    parsed = from_arguments(ExperimentConfig, arguments, prog="twostream train")
    assert parsed.name == "wide-0003-longer"
    assert parsed.training == replace(trial.training, epochs=2 * trial.training.epochs)
    assert parsed.training.learning_rate == 0.02 and parsed.model == trial.model
    assert parsed.storage == config.storage
    assert "top-1 62.5% on val in 1 epochs" in text


def test_the_best_recipe_holds_neither_passwords_nor_folders_that_go_with_the_search(tmp_path: Path) -> None:
    samples = str(own_folder_path() / "samples-0a")
    data = DataConfig(shards="shards", validation_split="val", sample_cache=samples)
    tracking = TrackingConfig(uri="http://me:planted@host:5000")
    *_, text, arguments = written(tmp_path, data=data, tracking=tracking)
    assert "planted" not in text and "samples-0a" not in text
    parsed = from_arguments(ExperimentConfig, arguments, prog="twostream train")
    assert (parsed.data.sample_cache, parsed.tracking.uri) == (None, None)
    own = replace(data, sample_cache=str(tmp_path / "kept"))
    parsed = from_arguments(ExperimentConfig, written(tmp_path / "b", data=own)[3], prog="twostream train")
    assert parsed.data.sample_cache == str(tmp_path / "kept")


@pytest.mark.parametrize(("wanted", "tested_on"), [("test", "val"), ("val", "val"), ("train", "train")])
def test_a_test_split_that_is_not_there_is_replaced_by_the_validation_split(
    wanted: str, tested_on: str, tmp_path: Path
) -> None:
    data = DataConfig(shards="shards", validation_split="val", test_split=wanted)
    *_, text, arguments = written(tmp_path, data=data)
    assert from_arguments(ExperimentConfig, arguments, prog="twostream train").data.test_split == tested_on
    assert ("The shards have no split" in text) == (wanted != tested_on)
