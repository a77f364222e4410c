from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import jsonschema
import pytest

from twostream_ray import recipes
from twostream_ray.settings.bounds import require_within
from twostream_ray.settings.json_schema import intervals, meanings, recipe_schema
from twostream_ray.settings.recipe_text import parse_recipe
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.verbs.commands import VERBS, settings_class

KINDS = {name: kind for name in VERBS if (kind := settings_class(name)) is not None}


def schema_of(verb: str) -> dict[str, Any]:
    others = {name: kind for name, kind in KINDS.items() if name != verb}
    return recipe_schema(KINDS[verb], title=verb, others=others)


def refusals(schema: dict[str, Any], values: Any) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(values)]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A block."""

    size: int
    """Pixels."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Settings of every kind of type."""

    name: str
    """Its name."""
    rate: float = 0.5
    """A share,
    in two lines."""
    mode: Literal["fast", "exact"] = "fast"
    """How."""
    count: int | None = None
    """How many."""
    layers: list[str] = field(default_factory=list)
    """Names."""
    range: tuple[int, int] = (1, 2)
    """From and to."""
    parts: list[Part] = field(default_factory=list)
    """Blocks."""
    part: Part = Part(size=1)
    """A block."""

    def __post_init__(self) -> None:
        require_within(self, rate="[0, 1)", count="[1, 1_000]")


WHOLE = recipe_schema(Whole, title="Whole", others={})


@pytest.mark.parametrize("verb", KINDS)
def test_every_verb_has_a_schema_that_is_one(verb: str) -> None:
    schema = schema_of(verb)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"].keys() >= set(KINDS[verb].__dataclass_fields__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_recipe_of_the_package_keeps_the_schemas_of_train_and_tune(recipe: str) -> None:
    values = parse_recipe(recipes.text(recipe), where=recipe).values
    for verb in ("train", "tune", "ingest", "describe"):
        assert refusals(schema_of(verb), values) == [], verb


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"nam": "n"}, "$"),
        ({"part": {"siz": 1}}, "$.part"),
        ({"rate": 1}, "$.rate"),
        ({"rate": "0.5"}, "$.rate"),
        ({"count": 0}, "$.count"),
        ({"count": 1.5}, "$.count"),
        ({"mode": "slow"}, "$.mode"),
        ({"layers": [1]}, "$.layers"),
        ({"range": [1]}, "$.range"),
        ({"parts": [{}]}, "$.parts[0]"),
    ],
)
def test_a_schema_refuses(values: dict[str, Any], path: str) -> None:
    assert refusals(WHOLE, values) == [path]


def test_a_schema_takes_what_the_parser_takes() -> None:
    assert refusals(WHOLE, {}) == []  # what is wanted may be given on the command line
    assert refusals(WHOLE, asdict(Whole(name="n")) | {"range": [1, 2]}) == []
    assert refusals(WHOLE, {"layers": "relu5", "count": None, "parts": [{"size": 3}], "rate": 0}) == []


def test_settings_of_other_verbs_are_left_alone_and_misspelt_ones_are_not() -> None:
    assert refusals(schema_of("train"), {"search": {"trials": 3}, "catalog": {"root": "videos"}}) == []
    assert refusals(schema_of("train"), {"serach": {"trials": 3}}) == ["$"]


def test_meanings_intervals_and_defaults_are_those_of_the_class() -> None:
    assert meanings(Whole)["rate"] == "A share, in two lines."
    assert intervals(Whole) == {"rate": "[0, 1)", "count": "[1, 1_000]"}
    rate = WHOLE["properties"]["rate"]
    assert rate == {
        "type": "number", "minimum": 0, "exclusiveMaximum": 1, "description": "A share, in two lines.", "default": 0.5,
    }  # fmt: skip
    assert WHOLE["properties"]["count"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 1000}


def test_every_setting_of_a_training_has_a_meaning() -> None:
    assert all(meanings(TrainingConfig).get(name) for name in TrainingConfig.__dataclass_fields__)
