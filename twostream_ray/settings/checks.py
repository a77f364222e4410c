"""Schema validation of nested values against settings classes before parsing: names, types, lengths of strings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief
from twostream_ray.settings.recipe_text import Recipe

_LONGEST_TEXT = 4096
"""Characters of a text, as Linux has for a path."""
_LARGEST_WHOLE_NUMBER = 2**63


@cache
def types_of(kind: type) -> Mapping[str, Any]:
    """The types of a settings class's fields, by their names, in order: read once, as each reading compiles them."""
    return get_type_hints(kind)


def type_of(kind: type, key: str) -> Any:
    """The type of the setting with a dotted name; None where there is none."""
    hint: Any = kind
    for name in key.split("."):
        if not is_dataclass(hint):
            return None
        hint = types_of(hint).get(name)  # type: ignore[arg-type]
    return hint


def check_names_and_types(
    kind: type, values: Any, *, recipe: Recipe | None, prefix: str = "", complete: bool = False
) -> None:
    """Refuse values whose names or types do not match a settings class; `complete` requires every field.

    Raises:
        ConfigError: names the setting, and the recipe's line.
    """
    hints = {field.name: types_of(kind)[field.name] for field in fields(kind)}
    for name, value in values.items():
        key = f"{prefix}.{name}".lstrip(".")
        if name not in hints:
            raise ConfigError(
                f"{recipe.line_of(key) if recipe else ''}{unknown_setting(key, list(names_of(kind, prefix)))}"
            )
        check_value(hints[name], value, key, recipe, complete=complete)
    missing = sorted(hints.keys() - values.keys()) if complete else []
    if missing:
        raise ConfigError(f"{prefix or 'it'} lacks {', '.join(missing)}")


def check_value(hint: Any, value: Any, key: str, recipe: Recipe | None, *, complete: bool = False) -> None:
    """Refuse a value that is not of its setting's type.

    Raises:
        ConfigError: names the setting, and the recipe's line.
    """
    where = recipe.line_of(key) if recipe else ""
    if is_dataclass(hint):
        if isinstance(value, Mapping):
            check_names_and_types(hint, value, recipe=recipe, prefix=key, complete=complete)  # type: ignore[arg-type]
        else:
            got = "nothing: leave it out" if value is None else brief(value)
            raise ConfigError(f"{where}{key} is a block of settings `name: value`, got {got}")
    elif value is None and not _accepts(NoneType, hint):
        raise ConfigError(f"{where}{key} must be {_type_name(hint)}, got nothing")
    elif isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            raise ConfigError(f"{where}{key} may have at most {_LONGEST_TEXT} characters, got {len(value)}")
        if "\0" in value:
            raise ConfigError(f"{where}{key} has a NUL character, which is not allowed: remove it")
        if not accepts_text(hint):
            raise ConfigError(f"{where}{key} must be {_type_name(hint)}, got the text {brief(value)}")
    elif isinstance(value, int) and abs(value) > _LARGEST_WHOLE_NUMBER:
        raise ConfigError(f"{where}{key} is too large a number: {brief(value)}")
    elif isinstance(value, list | tuple) and parts_of(hint):
        parts = parts_of(hint)
        for number, item in enumerate(value):
            check_value(parts[min(number, len(parts) - 1)], item, f"{key}[{number}]", recipe, complete=complete)


def parts_of(hint: Any) -> list[Any]:
    """Element types of a list or tuple type, or of the first one in a union."""
    if get_origin(hint) in (list, tuple):
        return [part for part in get_args(hint) if part is not Ellipsis]
    return next((parts for one in get_args(hint) if (parts := parts_of(one))), [])


def _accepts(kind: type, hint: Any) -> bool:
    return hint in (kind, Any) or any(_accepts(kind, one) for one in get_args(hint) if get_origin(hint) is not dict)


def listed_in(kind: Any) -> list[type]:
    """Settings classes that occur as list elements in a settings class, recursively."""
    hints = list(types_of(kind).values())
    listed = [part for hint in hints for part in parts_of(hint) if is_dataclass(part)]
    inner = (one for hint in [*hints, *listed] if is_dataclass(hint) for one in listed_in(hint))
    return [*listed, *inner]  # type: ignore[list-item]


def accepts_text(hint: Any) -> bool:
    """Whether a type accepts a string."""
    if get_origin(hint) is Literal:
        return any(isinstance(choice, str) for choice in get_args(hint))
    if get_origin(hint) in (list, tuple, dict):
        return False
    return hint in (str, Any) or any(accepts_text(one) for one in get_args(hint))


def _type_name(hint: Any) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    many = {list: "a list", tuple: "a list", dict: "a block"}
    alternatives = [hint] if hint in words or get_origin(hint) in many else get_args(hint)
    return " or ".join(words.get(one) or many.get(get_origin(one), str(one)) for one in alternatives)


def names_of(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of a class."""
    for name, hint in types_of(kind).items():
        key = f"{prefix}.{name}".lstrip(".")
        yield key
        if is_dataclass(hint):
            yield from names_of(hint, key)  # type: ignore[arg-type]


def unknown_setting(key: str, keys: Sequence[str]) -> str:
    """The message for an unknown setting, with the closest matches."""
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    siblings = [name for name in keys if name.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
    valid = near or siblings or [name for name in keys if "." not in name]
    return f"unknown setting {key!r}; did you mean {', '.join(valid)}? --help-all lists all"
