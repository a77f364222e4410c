"""Parsing of settings (jsonargparse): frozen dataclasses from YAML recipes, JSON and dotted command-line options.

Errors name the key, the value and the valid values.

Values are data: none of them names code. jsonargparse would import what a value calls a `class_path` before it refuses
it, and read a file that a value names; both are switched off here, for files and for the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_loader, set_parsing_settings

from twostream_ray.errors import ConfigError
from twostream_ray.settings.arguments import OtherSettings, given, lists_among
from twostream_ray.settings.checks import check_names_and_types, listed_in, unknown_setting
from twostream_ray.settings.recipe_text import parse_recipe

set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],
    instantiate_subclass_spec_in_any=False,
)

Settings = TypeVar("Settings")

_NO_SETTINGS = ("--help", "--config", "--print_config")


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
    kind: type[Settings],
    *,
    prog: str = "twostream",
    description: str | None = None,
    positionals: Sequence[str] = (),
    usage: str | None = None,
) -> ArgumentParser:
    """An argument parser with one dotted option per field of a settings class, and --config for a recipe.

    Lists among `positionals`, settings that are given without their names, are no options of it.
    """
    parser = ArgumentParser(
        prog=prog, description=description, usage=usage, exit_on_error=False, parser_mode=_MODE, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML recipe: a file, or the name of one that `twostream recipes` lists. A verb takes the part that it "
        "knows. Options override it wherever they stand, and of what is given twice the last counts.",
    )
    _allow_blocks(kind)
    parser.add_class_arguments(kind, skip=set(lists_among(kind, positionals)))
    for action in parser._actions:
        if action.metavar == "CONFIG" and action.dest != "config":
            action.metavar, action.help = "{...}", "Several of these at once, as {name: value, ...}."
    return parser


def _allow_blocks(kind: type) -> None:
    """Let values name the classes of a list's blocks, by whose paths the parser finds them: these are loaded."""
    set_parsing_settings(import_path_allowlist=[f"{one.__module__}.{one.__qualname__}" for one in listed_in(kind)])


@cache
def _parser_made_once(kind: type, prog: str, positionals: tuple[str, ...]) -> ArgumentParser:
    """A parser of settings that are read again and again: to make it takes longer than to parse."""
    return parser_for(kind, prog=prog, description=kind.__doc__, positionals=positionals)


def _known_parser(kind: type, prog: str = "twostream", positionals: Sequence[str] = ()) -> ArgumentParser:
    parser = _parser_made_once(kind, prog, tuple(positionals))
    _allow_blocks(kind)
    return parser


def from_arguments(
    kind: type[Settings],
    arguments: Sequence[str],
    *,
    prog: str = "twostream",
    positionals: Sequence[str] = (),
    elsewhere: OtherSettings = tuple,
) -> Settings:
    """Settings from the command line.

    Args:
        kind: the settings class.
        arguments: the arguments after the verb.
        prog: the verb, as it is called.
        positionals: dotted names of settings that may be given without them, in order; the last may be a list.
        elsewhere: returns the settings classes of the other verbs, whose part of a recipe is ignored.

    Raises:
        ConfigError: an unknown key, a bad value, a missing one, or a recipe that cannot be read.
    """
    found = given(kind, arguments, positionals=positionals, elsewhere=elsewhere)
    parser = _known_parser(kind, prog, positionals)
    try:
        # The environment is read nowhere: JSONARGPARSE_DEFAULT_ENV would make settings of it.
        return _instantiated(kind, parser, parser.parse_args(found.arguments, env=False), found.lists)
    except (ArgumentError, ConfigError) as error:
        message = _explained(error, parser) if isinstance(error, ArgumentError) else str(error)
        raise ConfigError(_line_of(message, found.lines) + message) from None


def from_mapping(kind: type[Settings], values: Mapping[str, Any], *, complete: bool = False) -> Settings:
    """Settings from nested JSON or YAML values; `complete` requires every field, as for stored documents.

    Raises:
        ConfigError: an unknown key, a bad value or a missing one.
    """
    check_names_and_types(kind, values, recipe=None, complete=complete)
    parser = _known_parser(kind)
    try:
        return _instantiated(kind, parser, parser.parse_object(dict(values), env=False))
    except ArgumentError as error:
        raise ConfigError(_explained(error, parser)) from None


def with_missing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with missing ones filled in from `defaults`."""
    found = dict(values)
    for name, default in defaults.items():
        if name not in found:
            found[name] = default
        elif isinstance(default, Mapping) and isinstance(found[name], Mapping):
            found[name] = with_missing(found[name], default)
    return found


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
            f"{what} was started with {key}={then.get(key)}, now {key}={wanted.get(key)} is requested"
            + (f" (and {len(changed) - 1} other settings differ)" if len(changed) > 1 else "")
            + f": choose another --name, or delete {uri}"
        )


def _instantiated(
    kind: type[Settings], parser: ArgumentParser, parsed: Namespace, lists: Mapping[str, list[str]] | None = None
) -> Settings:
    values = vars(parser.instantiate(parsed))
    return kind(**{name: value for name, value in values.items() if name != "config"}, **(lists or {}))


def known_keys(parser: ArgumentParser) -> list[str]:
    """Dotted names of all settings."""
    return sorted(
        {
            option[2:]
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--") and option not in _NO_SETTINGS
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
        return f"{message}: `{parser.prog} --help` shows how" if "are required" in message else message
    return unknown_setting(unknown[1] or unknown[2] or f"{unknown[3]}.{unknown[4]}", known_keys(parser))


def _line_of(message: str, lines: Mapping[str, str]) -> str:
    """Line of a recipe with the setting that an error is about; "" if it is set by an option."""
    named = re.match(r'(?:Parser key )?"([\w.]+)"|(?:Parser key )?([a-z][\w.]+)', message)
    if named is None:
        return ""
    key = named[1] or named[2]
    # Parts of settings name themselves without the block that they are in: flow_length of data.sampling.
    found = [name for name in lines if name == key or name.endswith(f".{key}")]
    return lines[key] if key in lines else lines[found[0]] if len(found) == 1 else ""
