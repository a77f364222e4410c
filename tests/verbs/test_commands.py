import shlex
from typing import get_type_hints

import pytest

from twostream_ray.runs.search.settings import settings_from
from twostream_ray.settings.checks import names_of
from twostream_ray.settings.parser import from_mapping
from twostream_ray.verbs.commands import GROUPS, VERBS, all_settings, load, members, parse, settings_class
from twostream_ray.verbs.jobs import split_arguments


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_names_a_function_and_settings_that_exist(name: str) -> None:
    verb, kind = VERBS[name], settings_class(name)
    assert get_type_hints(load(verb.function, package="twostream_ray.verbs"))["return"] is int
    if kind is not None:
        assert {*verb.positionals, *verb.shown} <= set(names_of(kind))
    assert name.partition(" ")[0] in GROUPS or " " not in name


def test_groups_have_members() -> None:
    assert {group: members(group) for group in GROUPS}["track"] == ["replay"]
    assert all(map(members, GROUPS))


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.settings])
def test_every_example_of_the_help_is_a_command_that_is_understood(name: str) -> None:
    kind = settings_class(name)
    assert kind is not None
    for example in VERBS[name].examples:
        words = [word for word in shlex.split(example) if f"{word}" not in VERBS[name].more]
        if name == "submit":
            own, verb, rest = split_arguments(words)
            words, inner = [verb, *own], settings_class(verb)
            assert inner is not None
            parse(verb, inner, rest)
        if "--resume" not in words:
            parse(name, kind, words if name != "demo" else ["--config", "demo", *words])


@pytest.mark.parametrize("recipe", ["fusion_2016", "search_fusion", "own_videos_cpu"])
def test_every_verb_takes_from_a_recipe_the_part_that_it_knows(recipe: str) -> None:
    needed = {
        "ingest": ["videos", "--out", "o"],
        "benchmark ingest": ["videos"],
        "benchmark predict": ["videos"],
        "weights fetch": ["vgg16", "--to", "o"],
        "synthesize": ["o"],
        "pull": ["o"],
        "submit": ["train"],
        "predict": ["v.mp4"],
        "explain": ["v.mp4"],
        "promote": ["7"],
        "compare": ["a", "b"],
        "evaluate": ["models:/a/1"],
        "tune-scores": ["--choose.both", "b.npz"],
    }
    for name in VERBS:
        kind = settings_class(name)
        if kind is not None and name != "tune":
            parse(name, kind, [*needed.get(name, []), "--config", recipe])
    if recipe == "search_fusion":
        options = {"positionals": ["data.shards"], "elsewhere": all_settings}
        assert settings_from(["mine", "--config", recipe], **options).data.shards == "mine"


def test_settings_of_all_verbs_are_given_once_each() -> None:
    kinds = all_settings()
    assert len(kinds) == len(set(kinds)) > 10
    assert from_mapping(kinds[0], {"out": "o"})
