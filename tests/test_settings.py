from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.errors import ConfigError
from twostream_ray.runs.config import ExperimentConfig, IngestConfig, PredictConfig
from twostream_ray.settings import from_arguments, from_mapping, parser_for

INGEST = ["--catalog.root", "videos", "--out", "shards"]


def test_dotted_options_override_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("catalog: {root: videos}\nout: shards\nflow: {bound_px: 15, algorithm: tvl1}\n")
    config = from_arguments(IngestConfig, ["--config", str(recipe), "--flow.bound_px", "10"])
    assert config.flow == FlowContract(bound_px=10, algorithm="tvl1")


def test_an_unknown_key_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'flow.bund_px'; did you mean flow.bound_px"):
        from_arguments(IngestConfig, [*INGEST, "--flow.bund_px", "3"])


def test_an_unknown_key_of_a_recipe_is_answered_too(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("catalog: {root: videos, layot: folder}\nout: shards\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'catalog.layot'; did you mean catalog.layout"):
        from_arguments(IngestConfig, ["--config", str(recipe)])


def test_a_value_of_the_wrong_type_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r'"flow.bound_px": Expected a float. Got value: wide'):
        from_arguments(IngestConfig, [*INGEST, "--flow.bound_px", "wide"])


def test_a_value_that_is_no_choice_is_answered_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"one of 'dis', 'tvl1', 'dis\+tvl1'. Got value: brox"):
        from_arguments(IngestConfig, [*INGEST, "--flow.algorithm", "brox"])


def test_a_missing_setting_and_a_missing_recipe_are_named() -> None:
    with pytest.raises(ConfigError, match=r"required: catalog.root"):
        from_arguments(IngestConfig, ["--out", "shards"])
    with pytest.raises(ConfigError, match=r"File does not exist: '.*nowhere.yaml'"):
        from_arguments(IngestConfig, ["--config", "nowhere.yaml"])


def test_positional_videos_become_a_list() -> None:
    config = from_arguments(PredictConfig, ["a.avi", "b.mp4", "--top_k", "2"], positional="videos")
    assert config.videos == ["a.avi", "b.mp4"] and config.top_k == 2


def test_settings_survive_json() -> None:
    config = from_mapping(ExperimentConfig, {"name": "a", "data": {"shards": "s"}, "training": {"step_epochs": [3, 5]}})
    assert config.training.step_epochs == (3, 5)
    assert from_mapping(ExperimentConfig, asdict(config)) == config


def test_every_field_of_every_verb_is_explained() -> None:
    for kind in (IngestConfig, ExperimentConfig, PredictConfig):
        for action in parser_for(kind)._actions:
            assert action.help, f"{kind.__name__}: {action.dest}"


def test_invalid_combinations_speak_for_themselves() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Holder:
        """Holds a contract."""

        flow: FlowContract = field(default_factory=FlowContract)
        """Flow."""

    with pytest.raises(ConfigError, match=r"flow.bound_px must be more than 0 px, got -1"):
        from_mapping(Holder, {"flow": {"bound_px": -1}})
