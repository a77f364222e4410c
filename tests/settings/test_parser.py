import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.errors import ConfigError
from twostream_ray.runs.describe import DescribeConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.settings import PredictConfig
from twostream_ray.runs.search.settings import TuneConfig
from twostream_ray.runs.settings import IngestConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.settings.parser import from_arguments, from_mapping, parser_for

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
    with pytest.raises(ConfigError, match=r"no such recipe: cannot read nowhere.yaml: it does not exist"):
        from_arguments(IngestConfig, ["--config", "nowhere.yaml"])


def test_positional_videos_become_a_list() -> None:
    config = from_arguments(PredictConfig, ["a.avi", "b.mp4", "--top_k", "2"], positionals=["videos"])
    assert config.videos == ["a.avi", "b.mp4"] and config.top_k == 2


def test_settings_survive_json() -> None:
    config = from_mapping(ExperimentConfig, {"name": "a", "data": {"shards": "s"}, "training": {"step_epochs": [3, 5]}})
    assert config.training.step_epochs == (3, 5)
    assert from_mapping(ExperimentConfig, asdict(config)) == config


def test_what_was_read_or_refused_before_leaves_no_trace() -> None:
    more = '[{"name": "b", "root": "r"}]'
    for _ in range(2):
        assert from_arguments(IngestConfig, [*INGEST, "--more", more, "--flow.bound_px", "9"]).more[0].name == "b"
        with pytest.raises(ConfigError):
            from_arguments(IngestConfig, [*INGEST, "--flow.bound_px", "8", "--rows_per_shard", "0"])
        with pytest.raises(ConfigError):
            from_arguments(PredictConfig, ["a.avi", "--top_k", "0"], positionals=["videos"])
        assert from_arguments(PredictConfig, ["a.avi"], positionals=["videos"]) == PredictConfig(videos=["a.avi"])
        assert from_arguments(IngestConfig, INGEST) == from_mapping(
            IngestConfig, {"catalog": {"root": "videos"}, "out": "shards"}
        )


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

    with pytest.raises(ConfigError, match=r"flow.bound_px must be at least 0.001, got -1"):
        from_mapping(Holder, {"flow": {"bound_px": -1}})


EXPERIMENT: dict[str, Any] = {"name": "a", "data": {"shards": "s", "validation_split": "v"}}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module on the path that nothing may import; returns whether something did."""
    mark = tmp_path / "imported"
    (tmp_path / "planted.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Payload: pass\ndef run(*_): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def imported() -> bool:
        return mark.exists() or "planted" in sys.modules

    return imported


NAMES_CODE = [
    {"class_path": "planted.Payload"},
    {"class_path": "planted.Payload", "init_args": {"epochs": 1}},
    {"init_args": {"epochs": 1}},
    "planted.Payload",
    [{"class_path": "planted.Payload"}],
]
SETTINGS_WITH_BLOCKS = [
    (DescribeConfig, {}, ("model.spatial",)),
    (WorkersConfig, {}, ("num_workers",)),
    (IngestConfig, {"catalog": {"root": "r"}, "out": "o"}, ("catalog", "more")),
    (PredictConfig, {"videos": ["a"]}, ("tracking", "format")),
]


def with_value(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The values with a dotted name set."""
    first, _, rest = key.partition(".")
    inside = values.get(first)
    return values | {first: with_value(inside if isinstance(inside, dict) else {}, rest, value) if rest else value}


@pytest.mark.parametrize(("kind", "base", "keys"), SETTINGS_WITH_BLOCKS)
def test_no_value_of_any_setting_imports_what_it_names(
    kind: type, base: dict[str, Any], keys: tuple[str, ...], tmp_path: Path, planted: Callable[[], bool]
) -> None:
    recipe = tmp_path / "recipe.json"
    plain = [text for name, value in base.items() for text in ("--config", json.dumps({name: value}))]
    for key in keys:
        for value in NAMES_CODE:
            text = value if isinstance(value, str) else json.dumps(value)
            recipe.write_text(json.dumps(with_value(base, key, value)))
            ways: list[Callable[[], object]] = [
                partial(from_mapping, kind, with_value(base, key, value)),
                partial(from_arguments, kind, ["--config", str(recipe)]),
                partial(from_arguments, kind, ["--config", recipe.read_text()]),
                partial(from_arguments, kind, [*plain, f"--{key}", text]),
                partial(from_arguments, kind, [*plain, f"--{key}={text}"]),
                partial(from_arguments, kind, [*plain, f"--{key}+", text]),
                partial(from_arguments, kind, [*plain, f"--{key}.class_path", "planted.Payload"]),
                partial(from_arguments, kind, [*plain, f"--{key}.init_args.epochs", "1"]),
            ]
            for way in ways:
                with pytest.raises(ConfigError) as met:
                    way()
                assert not planted(), (key, value, str(met.value))
                assert "\n" not in str(met.value)


@pytest.mark.parametrize(
    "space",
    [
        {"class_path": "planted.Payload"},
        {"training.epochs": {"class_path": "planted.Payload", "init_args": {}}},
        {"training.epochs": [{"class_path": "planted.Payload"}]},
        {"training.epochs": "planted.run"},
    ],
)
def test_a_search_space_is_kept_as_it_is_written(
    space: dict[str, Any], tmp_path: Path, planted: Callable[[], bool]
) -> None:
    values = EXPERIMENT | {"search": {"space": space}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(values))
    plain = ["--name", "a", "--data.shards", "s", "--data.validation_split", "v"]
    assert from_mapping(TuneConfig, values).search.space == space
    assert from_arguments(TuneConfig, ["--config", str(recipe)]).search.space == space
    assert from_arguments(TuneConfig, [*plain, "--search.space", json.dumps(space)]).search.space == space
    assert not planted()


def test_help_for_a_class_that_a_value_names_imports_nothing(planted: Callable[[], bool]) -> None:
    for option in ("--more.help", "--flow.help", "--catalog.help"):
        for arguments in ([option, "planted.Payload"], [f"{option}=planted.Payload"]):
            with pytest.raises((ConfigError, SystemExit)):
                from_arguments(IngestConfig, [*INGEST, *arguments])
    assert not planted()


def test_a_value_of_a_file_does_not_make_another_file_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("bound_px: 3\n")
    os.mkfifo(tmp_path / "fifo.yaml")
    for name in ("secret.yaml", "fifo.yaml"):
        other = str(tmp_path / name)
        with pytest.raises(ConfigError, match="flow is a block of settings `name: value`, got"):
            from_mapping(IngestConfig, {"catalog": {"root": "r"}, "out": "o", "flow": other})
        with pytest.raises(ConfigError, match=r"--flow takes several settings as \{name: value\}"):
            from_arguments(IngestConfig, [*INGEST, "--flow", other])


def test_the_environment_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("TWOSTREAM_ROWS_PER_SHARD", "TWOSTREAM_FLOW__BOUND_PX"):
        monkeypatch.setenv(name, "7")
    config = from_arguments(IngestConfig, INGEST)
    assert (config.rows_per_shard, config.flow.bound_px) == (128, 20)


def test_several_settings_at_once_are_taken_inline_and_faults_in_them_named() -> None:
    config = from_arguments(IngestConfig, [*INGEST, "--flow", "{bound_px: 3, algorithm: tvl1}", "--flow.bound_px", "4"])
    assert config.flow == FlowContract(bound_px=4, algorithm="tvl1")
    for value, message in {
        "{bound_px: 3, bound_px: 4}": "--flow, line 1: bound_px is repeated, first in line 1",
        "{bound_px: 3": "--flow, line 1: not valid YAML",
        '{"bound_px": NaN}': "--flow: expected a finite number, got NaN",
        "{bound_px: '3'}": "flow.bound_px must be a number, got the text '3'",
        "[1]": "flow is a block of settings",
    }.items():
        with pytest.raises(ConfigError) as met:
            from_arguments(IngestConfig, [*INGEST, "--flow", value])
        assert message in str(met.value)


def test_faults_in_a_recipe_name_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for text, message in {
        "out: o\ncatalog:\n  root: r\n  layot: folder\n": "line 4: unknown setting 'catalog.layot'",
        "out: o\ncatalog: videos\n": "line 2: catalog is a block of settings",
        "out: o\ncatalog:\n# root: videos\n": "line 2: catalog is a block of settings `name: value`, got nothing",
        "out: o\nflow: ~\n": "line 2: flow is a block of settings",
        "out: o\nflow: {bound_px: '3'}\n": "line 2: flow.bound_px must be a number, got the text '3'",
        "out: o\nmore:\n- {root: a}\n- {rot: a}\n": "line 4: unknown setting 'more[1].rot'",
        "out: o\nrows_per_shard: 99999999999999999999\n": "line 2: rows_per_shard is too large a number",
        "out: null\n": "line 1: out must be a text, got nothing",
        "out: o\nflow: {jpeg_quality: }\n": "line 2: flow.jpeg_quality must be a whole number, got nothing",
        f"out: {'o' * 5000}\n": "line 1: out may have at most 4096 characters, got 5000",
    }.items():
        recipe.write_text(text)
        with pytest.raises(ConfigError) as met:
            from_arguments(IngestConfig, ["--config", str(recipe)])
        assert str(met.value).startswith(f"{recipe}, {message}")


def test_documents_may_be_asked_to_hold_every_field() -> None:
    contract = asdict(FlowContract())
    assert from_mapping(FlowContract, contract, complete=True) == FlowContract()
    with pytest.raises(ConfigError, match="it lacks bound_px"):
        from_mapping(FlowContract, {key: contract[key] for key in contract if key != "bound_px"}, complete=True)


def test_options_override_recipes_wherever_they_stand_and_of_two_the_last_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("flow: {bound_px: 5, jpeg_quality: 80}\n")
    second.write_text("flow: {bound_px: 6}\n")
    twice = [*INGEST, "--flow.bound_px", "3", "--flow.bound_px", "4"]
    assert from_arguments(IngestConfig, twice).flow.bound_px == 4
    both = [*twice, "--config", str(first), "--config", str(second)]
    assert from_arguments(IngestConfig, both).flow == FlowContract(bound_px=4, jpeg_quality=80)
    recipes = [*INGEST, "--config", str(first), "--config", str(second)]
    assert from_arguments(IngestConfig, recipes).flow == FlowContract(bound_px=6, jpeg_quality=80)
    assert "of what is given twice the last counts" in " ".join(parser_for(IngestConfig).format_help().split())
