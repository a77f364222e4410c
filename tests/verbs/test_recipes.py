import json

import pytest

from twostream_ray import recipes
from twostream_ray.cli import main


def test_recipes_are_listed_with_a_line_each_at_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["recipes"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert [line.split()[0] for line in lines if not line.startswith(" ")] == recipes.names()


def test_a_recipe_is_printed_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("own_videos_cpu", "own_videos_cpu.yaml"):
        assert main(["recipes", name]) == 0
        assert capsys.readouterr().out == recipes.text("own_videos_cpu")


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "fusion_2061"]) == 2
    assert "did you mean fusion_2016?" in capsys.readouterr().err


def test_a_verbs_recipe_is_described_as_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "benchmark", "loader"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == "Recipe of `twostream benchmark loader`"
    assert "rounds" in schema["properties"]


def test_a_verb_without_a_recipe_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert main(["schema"]) == 2
    assert "got nothing" in capsys.readouterr().err
