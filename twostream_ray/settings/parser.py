"""Parsing of settings (jsonargparse): frozen dataclasses from YAML recipes, JSON and dotted command-line options.

Errors name the key, the value and the valid ones.

Values are data: none of them names code. jsonargparse would import what a value calls a `class_path` before it refuses
it, and read a file that a value names; both are switched off here, for files and for the command line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_loader, set_parsing_settings

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief
from twostream_ray.settings.recipe_text import Recipe, parse_recipe, read_recipe

set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],
    instantiate_subclass_spec_in_any=False,
)

Settings = TypeVar("Settings")

_LONGEST_TEXT = 4096
"""Characters of a text, as Linux has for a path."""
_LARGEST_WHOLE_NUMBER = 2**63


def _load_value(text: str) -> Any:
    """One value of the command line, or one text among values: the loader that jsonargparse calls."""
    try:
        values = parse_recipe(text, where="a value").values
    except ConfigError as error:
        # It may have been meant as a text, which jsonargparse tries next.
        raise yaml.YAMLError(str(error)) from error
    return text if values is None and text.strip() not in ("null", "~", "Null", "NULL") else values


_MODE = "settings"
set_loader(_MODE, _load_value, exceptions=(yaml.YAMLError,))


def parser_for(
    kind: type[Settings], *, prog: str = "twostream", description: str | None = None, positional: str | None = None
) -> ArgumentParser:
    """An argument parser with one dotted option per field of a settings class, and --config for a YAML recipe.

    The field named `positional`, a string or a list of them, is given without its name.
    """
    parser = ArgumentParser(
        prog=prog, description=description, exit_on_error=False, parser_mode=_MODE, allow_abbrev=False
    )
    if positional is not None:
        (wanted,) = [field for field in fields(kind) if field.name == positional]  # type: ignore[arg-type]
        optional = wanted.default_factory is not MISSING
        arity: dict[str, Any] = {"nargs": "*" if optional else "+"} if "list" in str(wanted.type) else {}
        parser.add_argument(positional, type=str, metavar=positional.upper(), **arity)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML recipe: a file, or the name of one that `twostream recipes` lists; options given after it override "
        "it, and of one given twice the last counts.",
    )
    parser.add_class_arguments(kind, skip={positional} if positional else set())
    for action in parser._actions:
        if action.metavar == "CONFIG" and action.dest != "config":
            action.metavar, action.help = "{...}", "Several of these at once, as {name: value, ...}."
    return parser


def from_arguments(
    kind: type[Settings], arguments: Sequence[str], *, prog: str = "twostream", positional: str | None = None
) -> Settings:
    """Settings from the command line.

    Raises:
        ConfigError: an unknown key, a bad value, a missing one, or a recipe that cannot be read.
    """
    checked = _checked_arguments(kind, arguments)
    parser = parser_for(kind, prog=prog, description=kind.__doc__, positional=positional)
    try:
        # The environment is read nowhere: JSONARGPARSE_DEFAULT_ENV would make settings of it.
        return _instantiated(kind, parser, parser.parse_args(checked, env=False))
    except ArgumentError as error:
        raise ConfigError(_explained(error, parser)) from None


def from_mapping(kind: type[Settings], values: Mapping[str, Any], *, complete: bool = False) -> Settings:
    """Settings from nested JSON or YAML values; `complete` wants every field to be there, as a document has them.

    Raises:
        ConfigError: an unknown key, a bad value or a missing one.
    """
    _check_names_and_types(kind, values, recipe=None, complete=complete)
    parser = parser_for(kind)
    try:
        return _instantiated(kind, parser, parser.parse_object(dict(values), env=False))
    except ArgumentError as error:
        raise ConfigError(_explained(error, parser)) from None


def _checked_arguments(kind: type, arguments: Sequence[str]) -> list[str]:
    """Arguments, their values checked against the settings; --config with a recipe's content instead of its path."""
    checked: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        option, assigned, value = argument.partition("=")
        hint = _type_of(kind, option[2:].removesuffix("+")) if option.startswith("--") else None
        if option != "--config" and hint is None:
            checked.append(argument)
            continue
        if not assigned:
            if not waiting or waiting[0].startswith("--"):
                checked.append(argument)  # its value is missing, which the parser says
                continue
            value = waiting.pop(0)
        if option == "--config":
            inline = value.lstrip().startswith("{")
            recipe = parse_recipe(value, where="--config") if inline else read_recipe(value)
            _check_names_and_types(kind, recipe.values, recipe=recipe)
            value = json.dumps(recipe.values)
        else:
            _check_inline(hint, option, value)
        checked.append(f"{option}={value}")
    return checked


def _check_inline(hint: Any, option: str, value: str) -> None:
    """Check a value of the command line that has parts against its setting."""
    key = option[2:].removesuffix("+")
    if value.lstrip().startswith(("{", "[")):
        if not _accepts_text(hint):
            recipe = parse_recipe(value, where=option)
            _check_value(next(iter(_parts(hint)), hint) if option.endswith("+") else hint, recipe.values, key, recipe)
    elif is_dataclass(hint):
        raise ConfigError(f"{option} takes several settings as {{name: value}}, got {brief(value)}: a file is --config")


def _type_of(kind: type, key: str) -> Any:
    """The type of the setting with a dotted name; None where there is none."""
    hint: Any = kind
    for name in key.split("."):
        if not is_dataclass(hint):
            return None
        hint = get_type_hints(hint).get(name)
    return hint


def _check_names_and_types(
    kind: type, values: Any, *, recipe: Recipe | None, prefix: str = "", complete: bool = False
) -> None:
    """Refuse values that have names or types other than a settings class, before they are parsed."""
    hints = {field.name: hint for field in fields(kind) for hint in [get_type_hints(kind)[field.name]]}
    for name, value in values.items():
        key = f"{prefix}.{name}".lstrip(".")
        if name not in hints:
            raise ConfigError(f"{recipe.line_of(key) if recipe else ''}{_unknown(key, list(_names(kind, prefix)))}")
        _check_value(hints[name], value, key, recipe, complete=complete)
    missing = sorted(hints.keys() - values.keys()) if complete else []
    if missing:
        raise ConfigError(f"{prefix or 'it'} lacks {', '.join(missing)}")


def _check_value(hint: Any, value: Any, key: str, recipe: Recipe | None, *, complete: bool = False) -> None:
    where = recipe.line_of(key) if recipe else ""
    if is_dataclass(hint):
        if isinstance(value, Mapping):
            _check_names_and_types(hint, value, recipe=recipe, prefix=key, complete=complete)  # type: ignore[arg-type]
        else:
            got = "nothing: leave it out" if value is None else brief(value)
            raise ConfigError(f"{where}{key} holds settings of its own as `name: value`, got {got}")
    elif value is None and not _accepts(NoneType, hint):
        raise ConfigError(f"{where}{key} wants {_type_name(hint)}, got nothing")
    elif isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            raise ConfigError(f"{where}{key} wants at most {_LONGEST_TEXT} characters, got {len(value)}")
        if "\0" in value:
            raise ConfigError(f"{where}{key} holds a NUL character, which no path or name has")
        if not _accepts_text(hint):
            raise ConfigError(f"{where}{key} wants {_type_name(hint)}, got the text {brief(value)}")
    elif isinstance(value, int) and abs(value) > _LARGEST_WHOLE_NUMBER:
        raise ConfigError(f"{where}{key} is too large a number: {brief(value)}")
    elif isinstance(value, list | tuple) and _parts(hint):
        parts = _parts(hint)
        for number, item in enumerate(value):
            _check_value(parts[min(number, len(parts) - 1)], item, f"{key}[{number}]", recipe, complete=complete)


def _parts(hint: Any) -> list[Any]:
    """The types of a list's or tuple's values, of the alternatives the first one's."""
    if get_origin(hint) in (list, tuple):
        return [part for part in get_args(hint) if part is not Ellipsis]
    return next((parts for one in get_args(hint) if (parts := _parts(one))), [])


def _accepts(kind: type, hint: Any) -> bool:
    return hint in (kind, Any) or any(_accepts(kind, one) for one in get_args(hint) if get_origin(hint) is not dict)


def _accepts_text(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(isinstance(choice, str) for choice in get_args(hint))
    if get_origin(hint) in (list, tuple, dict):
        return False
    return hint in (str, Any) or any(_accepts_text(one) for one in get_args(hint))


def _type_name(hint: Any) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    many = {list: "a list", tuple: "a list", dict: "a block"}
    alternatives = [hint] if hint in words or get_origin(hint) in many else get_args(hint)
    return " or ".join(words.get(one) or many.get(get_origin(one), str(one)) for one in alternatives)


def _names(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of a class."""
    for name, hint in get_type_hints(kind).items():
        key = f"{prefix}.{name}".lstrip(".")
        yield key
        if is_dataclass(hint):
            yield from _names(hint, key)  # type: ignore[arg-type]


def dotted(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists stay values."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    parts = (dotted(part, f"{prefix}.{name}".strip(".")) for name, part in values.items())
    return {key: value for part in parts for key, value in part.items()}


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of the settings (JSON's types) that differ, in order."""
    then, wanted = dotted(before), dotted(now)
    return sorted(key for key in then.keys() | wanted.keys() if then.get(key) != wanted.get(key))


def refuse_changed(before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, uri: str) -> None:
    """Refuse to resume in `uri` with settings (JSON's types) other than those that `what`, as 'run "x"', began with.

    Raises:
        ConfigError: they differ.
    """
    if changed := changed_settings(before, now):
        then, wanted = dotted(before), dotted(now)
        key = changed[0]
        raise ConfigError(
            f"{what} was started with {key}={then.get(key)}, now {key}={wanted.get(key)} is wanted"
            + (f" (and {len(changed) - 1} other settings differ)" if len(changed) > 1 else "")
            + f": choose another --name, or delete {uri}"
        )


def _instantiated(kind: type[Settings], parser: ArgumentParser, parsed: Namespace) -> Settings:
    values = vars(parser.instantiate(parsed))
    return kind(**{name: value for name, value in values.items() if name != "config"})


def known_keys(parser: ArgumentParser) -> list[str]:
    """Dotted names of all settings."""
    return sorted(
        {
            option[2:]
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--") and option not in ("--help", "--config", "--print_config")
        }
    )


def _explained(error: ArgumentError, parser: ArgumentParser) -> str:
    message = " ".join(str(error).split())
    message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", message).replace("<class '", "").replace("'>", "")
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)"
        r"|Option '([\w.]+)' is not accepted"
        r"|Group '([\w.]+)' does not accept option '([\w.]+)'",
        message,
    )
    if unknown is None:
        return message
    return _unknown(unknown[1] or unknown[2] or f"{unknown[3]}.{unknown[4]}", known_keys(parser))


def _unknown(key: str, keys: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    siblings = [name for name in keys if name.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
    valid = near or siblings or [name for name in keys if "." not in name]
    return f"unknown setting {key!r}; did you mean {', '.join(valid)}? --help lists all"
