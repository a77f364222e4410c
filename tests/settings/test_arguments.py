from pathlib import Path

import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.runs.describe import DescribeConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.settings import EvaluateConfig, PredictConfig, RollbackConfig
from twostream_ray.runs.settings import IngestConfig, InspectConfig
from twostream_ray.settings.arguments import given
from twostream_ray.settings.checks import type_of
from twostream_ray.settings.parser import from_arguments, known_keys, parser_for
from twostream_ray.verbs.commands import all_settings

TRAIN = ["--name", "a", "--data.shards", "s"]


def test_positionals_are_settings_without_their_names() -> None:
    ingest = from_arguments(IngestConfig, ["vids", "--out", "sh"], positionals=["catalog.root"])
    assert (ingest.catalog.root, ingest.out) == ("vids", "sh")
    both = from_arguments(EvaluateConfig, ["m", "--split", "val", "s"], positionals=["model", "shards"])
    assert (both.model, both.split, both.shards) == ("m", "val", "s")
    assert from_arguments(RollbackConfig, ["3"], positionals=["to"]).to == 3
    assert from_arguments(PredictConfig, ["--", "-a.mp4", "--b.mp4"], positionals=["videos"]).videos == [
        "-a.mp4",
        "--b.mp4",
    ]
    with pytest.raises(ConfigError, match="'more' was not expected"):
        from_arguments(IngestConfig, ["vids", "more", "--out", "sh"], positionals=["catalog.root"])
    with pytest.raises(ConfigError, match=r"catalog.root is given twice, as --catalog.root and as 'vids'"):
        from_arguments(IngestConfig, ["--catalog.root", "v", "vids", "--out", "sh"], positionals=["catalog.root"])
    with pytest.raises(ConfigError, match=r"required: catalog.root: `twostream ingest --help` shows how"):
        from_arguments(IngestConfig, ["--out", "sh"], positionals=["catalog.root"], prog="twostream ingest")


def test_thousands_of_positionals_are_not_parsed() -> None:
    names = [f"{number}.mp4" for number in range(200_000)]
    assert from_arguments(PredictConfig, names, positionals=["videos"]).videos == names


def test_a_single_value_is_a_list_of_one_where_a_list_is_wanted(tmp_path: Path) -> None:
    layers = ["--model.fusion.layers", "relu4_3", "--training.step_epochs", "3"]
    config = from_arguments(ExperimentConfig, [*TRAIN, *layers])
    assert (config.model.fusion.layers, config.training.step_epochs) == (("relu4_3",), (3,))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: a\ndata: {shards: s}\nmodel: {fusion: {layers: relu4_3}}\ntraining: {step_epochs: 3}\n")
    assert from_arguments(ExperimentConfig, ["--config", str(recipe)]) == config
    more = ["--catalog.root", "r", "--out", "o", "--more", "{name: b, root: q}"]
    assert from_arguments(IngestConfig, more).more[0].root == "q"
    for value in ("2", "[1, 2]", "null"):
        from_arguments(ExperimentConfig, [*TRAIN, "--workers.num_workers", value])


def test_further_data_sets_are_a_list_of_blocks(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("catalog: {root: r}\nout: o\nmore:\n- {name: b, root: q}\n- {name: c, root: p}\n")
    (b, c) = from_arguments(IngestConfig, ["--config", str(recipe)]).more
    assert (b.name, b.root, c.name, c.layout) == ("b", "q", "c", "folder")
    inline = from_arguments(IngestConfig, ["--catalog.root", "r", "--out", "o", "--more", "[{name: b, root: q}]"])
    assert inline.more == [b]
    with pytest.raises(ConfigError):
        other = "[{class_path: twostream_ray.runs.settings.InspectConfig}]"
        from_arguments(IngestConfig, ["--catalog.root", "r", "--out", "o", "--more", other])


def test_a_bare_option_that_may_be_true_is_true() -> None:
    positionals = ["shards"]
    for words in (
        ["s", "--verify"],
        ["--verify", "s"],
        ["--verify", "true", "s"],
        ["--verify", "--num_clips", "2", "s"],
    ):
        config = from_arguments(InspectConfig, words, positionals=positionals)
        assert config.verify and config.shards == "s"
    assert not from_arguments(InspectConfig, ["--verify", "false", "s"], positionals=positionals).verify
    with pytest.raises(ConfigError, match="--out needs a value, got none"):
        from_arguments(InspectConfig, ["s", "--out"], positionals=positionals)


def test_a_verb_takes_its_part_of_a_recipe_and_names_that_no_verb_knows_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    whole = "name: a\ndata: {shards: s}\nmodel: {streams: both}\ntraining: {epochs: 3}\nflow: {bound_px: 10}\n"
    recipe.write_text(whole)
    arguments = ["--model", "m", "--config", str(recipe)]
    assert from_arguments(EvaluateConfig, arguments, elsewhere=all_settings).shards == "s"
    ingest = ["r", "--out", "o", "--config", str(recipe)]
    taken = from_arguments(IngestConfig, ingest, positionals=["catalog.root"], elsewhere=all_settings)
    assert taken.flow.bound_px == 10
    assert from_arguments(ExperimentConfig, ["--config", str(recipe)], elsewhere=all_settings).training.epochs == 3
    for added, said in {
        "trainig: {epochs: 1}\n": "line 6: unknown setting 'trainig'; did you mean",
        "search: {trails: 1}\n": "line 6: unknown setting 'search.trails'; did you mean search.trials",
        "tracking: {ur: x}\n": "line 6: unknown setting 'tracking.ur'; did you mean tracking.uri",
    }.items():
        recipe.write_text(whole + added)
        for kind in (EvaluateConfig, ExperimentConfig):
            start = ["--model", "m"] if kind is EvaluateConfig else []
            with pytest.raises(ConfigError) as met:
                from_arguments(kind, [*start, "--config", str(recipe)], elsewhere=all_settings)
            assert said in str(met.value), (kind, str(met.value))
    with pytest.raises(ConfigError, match=r"unknown setting 'training\.epochs'"):
        from_arguments(
            EvaluateConfig, ["--model", "m", "--shards", "s", "--training.epochs", "1"], elsewhere=all_settings
        )


def test_settings_of_a_training_stand_for_those_of_other_verbs() -> None:
    described = from_arguments(DescribeConfig, ["--config", "own_videos_cpu"], elsewhere=all_settings)
    assert (described.num_snippets, described.size_px) == (3, 112)
    nearer = from_arguments(DescribeConfig, ["--config", "own_videos_cpu", "--size_px", "64"], elsewhere=all_settings)
    assert nearer.size_px == 64


def test_faults_that_the_parser_and_the_settings_find_name_the_recipes_line_too(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for text, said in {
        "rows_per_shard: 1.5\n": 'line 1: Parser key "rows_per_shard": Expected a int',
        "out: o\nflow:\n  bound_px: -1\n": "line 3: flow.bound_px must be at least 0.001, got -1",
        "out: o\nflow:\n  algorithm: brox\n": 'line 3: Parser key "flow.algorithm": Expected a one of',
        "max_bad_fraction: 2\n": "line 1: max_bad_fraction must be in [0, 1], got 2",
    }.items():
        recipe.write_text(text)
        with pytest.raises(ConfigError) as met:
            from_arguments(IngestConfig, ["--config", str(recipe), "--catalog.root", "r", "--out", "o"])
        assert str(met.value).startswith(f"{recipe}, {said}")
    recipe.write_text("max_bad_fraction: 0.5\n")
    overridden = ["--config", str(recipe), "--catalog.root", "r", "--out", "o", "--max_bad_fraction", "2"]
    with pytest.raises(ConfigError, match=r"^max_bad_fraction must be in"):
        from_arguments(IngestConfig, overridden)


@pytest.mark.parametrize("kind", all_settings())
def test_every_option_of_the_parser_has_a_type_that_is_checked(kind: type) -> None:
    for key in known_keys(parser_for(kind)):
        if key.endswith(".help"):
            continue  # refused: it would import a class that a value names
        assert type_of(kind, key.removesuffix("+")) is not None, key


def test_single_dashes_are_no_options_and_negative_numbers_are_values() -> None:
    with pytest.raises(ConfigError, match="unknown setting '-x'"):
        given(InspectConfig, ["-x"])
    assert given(RollbackConfig, ["-5"], positionals=["to"]).arguments == ["--to=-5"]
