"""Command-line preprocessing for the parser: names positionals, inlines recipes, checks option names and values.

A recipe may serve several verbs: each takes the settings that it has. A name that no verb has is refused.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief
from twostream_ray.settings.checks import (
    accepts_text,
    check_names_and_types,
    check_value,
    names_of,
    parts_of,
    type_of,
    types_of,
    unknown_setting,
)
from twostream_ray.settings.recipe_text import Recipe, parse_recipe, read_recipe

OtherSettings = Callable[[], Sequence[type]]
"""Returns the settings classes of the other verbs; called only for a recipe with settings that this verb lacks."""

RECIPE_KEY = "recipe_key"
"""Metadata of a field: the dotted name in a recipe of the same setting of a training, taken where its own is absent."""

_PASSED_ON = ("-h", "--help", "--print_config")
_NUMBER = re.compile(r"-[0-9.].*")
_TRUE_OR_FALSE = ("true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True, kw_only=True)
class ParsedArguments:
    """A preprocessed command line."""

    arguments: list[str] = field(default_factory=list)
    """Options, each with its value, as --name=value."""
    lists: dict[str, list[str]] = field(default_factory=dict)
    """Positional lists of strings, which bypass the parser."""
    lines: dict[str, str] = field(default_factory=dict)
    """Dotted setting -> its line in a recipe, as an error's prefix, unless an option overrides it."""


def given(
    kind: type, arguments: Sequence[str], *, positionals: Sequence[str] = (), elsewhere: OtherSettings = tuple
) -> ParsedArguments:
    """Preprocess arguments and check their names and values against a settings class.

    Args:
        kind: the settings class of the verb.
        arguments: the arguments after the verb.
        positionals: dotted names of settings that may be given without them, in order; the last may be a list.
        elsewhere: returns the settings classes of the other verbs.

    Raises:
        ConfigError: an unknown name, a value of another type, a missing value, or a recipe that cannot be read.
    """
    found, free = ParsedArguments(lists={name: [] for name in lists_among(kind, positionals)}), list[str]()
    recipes, options = list[str](), list[tuple[str, Any, str]]()
    waiting = deque(arguments)
    while waiting:
        argument = waiting.popleft()
        option, assigned, value = argument.partition("=")
        if argument == "--":
            free += waiting
            break
        if argument in ("", "-") or not argument.startswith("-") or _NUMBER.fullmatch(argument):
            free.append(argument)
        elif option in _PASSED_ON:
            found.arguments.append(argument)
        else:
            hint = None if option == "--config" else _type_of_option(kind, option)
            value = value if assigned else _next_value(option, hint, waiting)
            if option == "--config":
                recipes.append(value)
            else:
                options.append((option, hint, value))
    # Options override recipes, wherever they stand.
    for value in recipes:
        _add_recipe(found, kind, value, elsewhere)
    for option, hint, value in options:
        _add_option(found, option, hint, value)
    for name in positionals:
        if name in found.lists:
            found.lists[name].extend(free)
            free = []
        elif free:
            if any(argument.startswith(f"--{name}=") for argument in found.arguments):
                raise ConfigError(f"{name} is given twice, as --{name} and as {brief(free[0])}: leave one out")
            _add_option(found, f"--{name}", type_of(kind, name), free.pop(0))
    if free:
        raise ConfigError(f"{brief(free[0])} was not expected: a setting is given as --NAME VALUE, --help lists them")
    return found


def lists_among(kind: type, positionals: Sequence[str]) -> list[str]:
    """The positional settings that are lists; they bypass the parser, as there may be thousands of values."""
    return [name for name in positionals if get_origin(type_of(kind, name)) is list]


def _type_of_option(kind: type, option: str) -> Any:
    key = option.removeprefix("--").removesuffix("+")
    hint = type_of(kind, key) if option.startswith("--") else None
    if hint is None:
        raise ConfigError(unknown_setting(key, sorted(names_of(kind))))
    return hint


def _next_value(option: str, hint: Any, waiting: deque[str]) -> str:
    """The value after an option; a boolean option without a value is true."""
    following = waiting[0] if waiting else None
    if hint is bool and (following is None or following.lower() not in _TRUE_OR_FALSE):
        return "true"
    if following is None or following.startswith("--"):
        raise ConfigError(f"{option} needs a value, got none: write {option} VALUE")
    return waiting.popleft()


def _add_option(found: ParsedArguments, option: str, hint: Any, value: str) -> None:
    key = option.removeprefix("--").removesuffix("+")
    value = value if option.endswith("+") else _as_list_of_one(hint, value)
    _check_inline(hint, option, value)
    if key in found.lists:
        found.lists[key].extend(_texts(option, value))
        return
    for name in [name for name in found.lines if name == key or name.startswith(f"{key}.")]:
        del found.lines[name]
    found.arguments.append(f"{option}={value}")


def _as_list_of_one(hint: Any, value: str) -> str:
    """Wrap a single value of the command line in a list if the setting is a list."""
    parts = parts_of(hint) if _is_list(hint) else []
    if not parts or value.lstrip().startswith("[") or value in ("null", "~"):
        return value
    return json.dumps([value]) if accepts_text(parts[0]) else f"[{value}]"


def _is_list(hint: Any) -> bool:
    """Whether a type is a list, or one or None, and nothing else."""
    alternatives = [hint] if get_origin(hint) in (list, tuple) else [one for one in get_args(hint) if one != NoneType]
    return bool(alternatives) and all(get_origin(one) in (list, tuple) for one in alternatives)


def _texts(option: str, value: str) -> list[str]:
    values = parse_recipe(value, where=option).values
    return list(map(str, values)) if isinstance(values, list) else [value]


def _check_inline(hint: Any, option: str, value: str) -> None:
    """Check a list or mapping on the command line against its setting's type."""
    key = option[2:].removesuffix("+")
    if value.lstrip().startswith(("{", "[")):
        if not accepts_text(hint):
            recipe = parse_recipe(value, where=option)
            check_value(next(iter(parts_of(hint)), hint) if option.endswith("+") else hint, recipe.values, key, recipe)
    elif is_dataclass(hint):
        raise ConfigError(f"{option} takes several settings as {{name: value}}, got {brief(value)}: a file is --config")


def _add_recipe(found: ParsedArguments, kind: type, value: str, elsewhere: OtherSettings) -> None:
    inline = value.lstrip().startswith("{")
    recipe = parse_recipe(value, where="--config") if inline else read_recipe(value)
    values = _with_lists_of_one(kind, _known_part(kind, recipe.values, recipe, elsewhere))
    check_names_and_types(kind, values, recipe=recipe)
    found.lines.update((key, recipe.line_of(key)) for key in recipe.lines)
    for one in fields(kind):
        key = one.metadata.get(RECIPE_KEY, one.name)
        taken = None if key == one.name else _value_at(recipe.values, key)
        if taken is not None and one.name not in values:
            values[one.name] = taken
            found.lines[one.name] = recipe.line_of(key)
    for name in found.lists.keys() & values.keys():
        found.lists[name].extend(values.pop(name))
    found.arguments.append(f"--config={json.dumps(values)}")


def _value_at(values: Any, key: str) -> Any:
    """The value with a dotted name, of settings with blocks; None where there is none."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _with_lists_of_one(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Wrap single values of a recipe in lists where the setting is a list."""
    hints = types_of(kind)
    changed = dict(values)
    for name, value in values.items():
        hint = hints.get(name)
        if is_dataclass(hint) and isinstance(value, Mapping):
            changed[name] = _with_lists_of_one(hint, value)  # type: ignore[arg-type]
        elif _is_list(hint) and isinstance(value, str | int | float) and not isinstance(value, bool):
            changed[name] = [value]
    return changed


def _known_part(
    kind: type, values: Mapping[str, Any], recipe: Recipe, elsewhere: OtherSettings, prefix: str = ""
) -> dict[str, Any]:
    """Drop the settings of a recipe that only other verbs have; unknown ones are kept, to be refused."""
    hints = types_of(kind)
    known = {}
    for name, value in values.items():
        key, hint = f"{prefix}.{name}".lstrip("."), hints.get(name)
        is_block = isinstance(value, Mapping)
        if is_block and is_dataclass(hint):
            known[name] = _known_part(hint, value, recipe, elsewhere, key)  # type: ignore[arg-type]
        elif not (hint is None or (is_block and accepts_text(hint))) or not _is_anothers(
            key, value, recipe, elsewhere()
        ):
            known[name] = value
    return known


def _is_anothers(key: str, value: Any, recipe: Recipe, kinds: Sequence[type]) -> bool:
    """Whether a setting is one of another verb, and all inside it too.

    Raises:
        ConfigError: something inside it is of no verb.
    """
    hints = [hint for kind in kinds if (hint := type_of(kind, key)) is not None]
    if isinstance(value, Mapping):
        hints = [hint for hint in hints if not accepts_text(hint)]
        for name, part in value.items() if any(map(is_dataclass, hints)) else ():
            inner = f"{key}.{name}"
            if not _is_anothers(inner, part, recipe, kinds):
                siblings = sorted({name for kind in kinds for name in names_of(kind)})
                raise ConfigError(recipe.line_of(inner) + unknown_setting(inner, siblings))
    return bool(hints)
