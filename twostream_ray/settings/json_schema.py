"""Settings classes as JSON Schema (draft 2020-12): types, intervals, meanings and defaults, for editors and programs.

A schema covers constraints on single values; rules that involve several settings are checked by the parser only.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from twostream_ray.settings.checks import type_of

_TYPES: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    Any: {},
}
_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def recipe_schema(kind: type, *, title: str, others: Mapping[str, type]) -> dict[str, Any]:
    """The schema of a verb's recipe.

    Nothing is required: what a recipe leaves out has a default or is given on the command line.

    Args:
        kind: the verb's settings class.
        title: what a reader sees above it.
        others: the other verbs' settings classes by verb: one recipe may hold settings of several verbs.
    """
    schema = _object(kind, others=others)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


@cache
def meanings(kind: type) -> dict[str, str]:
    """Field -> its docstring in one line, of a settings class."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        for parameter in parse_from_object(one).params:
            found[parameter.arg_name] = " ".join((parameter.description or "").split())
    return found


@cache
def intervals(kind: type) -> dict[str, str]:
    """Field -> interval that a settings class checks, in mathematical notation: {"epochs": "[1, 9]"}."""
    check = getattr(kind, "__post_init__", None)
    if check is None:
        return {}
    found = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(check)))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require_within":
            for keyword in node.keywords:
                if keyword.arg and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
                    found[keyword.arg] = keyword.value.value
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default as a JSON value; MISSING if it is required."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if is_dataclass(value):
        return dataclasses.asdict(value)  # type: ignore[arg-type]
    return list(value) if isinstance(value, tuple) else value


def _object(
    kind: type, *, others: Mapping[str, type] | None = None, key: str = "", complete: bool = False
) -> dict[str, Any]:
    """The schema of a settings class: its own fields, and those of other verbs in the same block."""
    hints, texts, bounds = get_type_hints(kind), meanings(kind), intervals(kind)
    properties: dict[str, Any] = {}
    for field in fields(kind):
        inner = f"{key}.{field.name}".lstrip(".")
        schema = _value(hints[field.name], bounds.get(field.name), others=others, key=inner)
        if texts.get(field.name):
            schema = schema | {"description": texts[field.name]}
        default = default_of(field)
        if default is not MISSING and not is_dataclass(hints[field.name]):
            schema = schema | {"default": default}
        properties[field.name] = schema
    for verb, other in (others or {}).items():
        block: Any = other if not key else type_of(other, key)
        for name in get_type_hints(block) if is_dataclass(block) else ():
            properties.setdefault(name, {"description": f"A setting of `twostream {verb}`, left out here."})
    wanted = [field.name for field in fields(kind) if default_of(field) is MISSING] if complete else []
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": wanted} if wanted else {}),
    }


def _value(
    hint: Any, interval: str | None, *, others: Mapping[str, type] | None = None, key: str = ""
) -> dict[str, Any]:
    if is_dataclass(hint):
        return _object(hint, others=others, key=key)  # type: ignore[arg-type]
    if hint in _TYPES:
        bounded = _TYPES[hint] if hint not in (int, float) else _TYPES[hint] | _bounds(interval)
        return dict(bounded)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], None)}
    if origin in (list, tuple):
        return _list(origin, arguments, interval)
    alternatives = [_value(one, interval) for one in arguments]
    return {"anyOf": alternatives}


def _list(origin: Any, arguments: Sequence[Any], interval: str | None) -> dict[str, Any]:
    """The schema of a list; a single value that is not a block stands for a list of one."""
    parts = [one for one in arguments if one is not Ellipsis]
    inner: list[dict[str, Any]] = [
        _object(one, complete=True) if is_dataclass(one) else _value(one, interval)  # type: ignore[arg-type]
        for one in parts
    ]
    if origin is tuple and Ellipsis not in arguments:
        return {"type": "array", "prefixItems": inner, "items": False, "minItems": len(inner)}
    many = {"type": "array", "items": inner[0]}
    return many if is_dataclass(parts[0]) else {"anyOf": [many, inner[0]]}


def _bounds(interval: str | None) -> dict[str, Any]:
    parts = _INTERVAL.fullmatch(interval or "")
    if parts is None:
        return {}
    low, high = _number(parts[2]), _number(parts[3])
    bounds = {
        "minimum" if parts[1] == "[" else "exclusiveMinimum": low,
        "maximum" if parts[4] == "]" else "exclusiveMaximum": high,
    }
    return {name: value for name, value in bounds.items() if math.isfinite(value)}


def _number(text: str) -> float:
    return int(text.replace("_", "")) if re.fullmatch(r"-?[0-9_]+", text) else float(text)
