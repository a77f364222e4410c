"""Frozen dataclasses from YAML recipes, JSON and dotted options; errors name the key, the value and the valid ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from twostream_ray.errors import ConfigError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Settings = TypeVar("Settings")


def parser_for(
    kind: type[Settings], *, prog: str = "twostream", description: str | None = None, positional: str | None = None
) -> ArgumentParser:
    """An argument parser with one dotted option per field of a settings class, and --config for a YAML recipe.

    The field named `positional`, a string or a list of them, is given without its name.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    if positional is not None:
        (wanted,) = [field for field in fields(kind) if field.name == positional]  # type: ignore[arg-type]
        optional = wanted.default_factory is not MISSING
        arity: dict[str, Any] = {"nargs": "*" if optional else "+"} if "list" in str(wanted.type) else {}
        parser.add_argument(positional, type=str, metavar=positional.upper(), **arity)
    parser.add_argument("--config", action="config", help="YAML recipe; options given after it override it.")
    parser.add_class_arguments(kind, skip={positional} if positional else set())
    return parser


def from_arguments(
    kind: type[Settings], arguments: Sequence[str], *, prog: str = "twostream", positional: str | None = None
) -> Settings:
    """Settings from the command line.

    Raises:
        ConfigError: an unknown key, a bad value, a missing one, or a recipe that cannot be read.
    """
    parser = parser_for(kind, prog=prog, description=kind.__doc__, positional=positional)
    try:
        return _instantiated(kind, parser, parser.parse_args(list(arguments)))
    except ArgumentError as error:
        raise ConfigError(_explained(error, parser)) from None


def from_mapping(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from nested JSON or YAML values.

    Raises:
        ConfigError: an unknown key, a bad value or a missing one.
    """
    parser = parser_for(kind)
    try:
        return _instantiated(kind, parser, parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise ConfigError(_explained(error, parser)) from None


def dotted(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists stay values."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    parts = (dotted(part, f"{prefix}.{name}".strip(".")) for name, part in values.items())
    return {key: value for part in parts for key, value in part.items()}


def refuse_changed(before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, place: str) -> None:
    """Refuse to go on in `place` with settings (JSON's types) other than those that `what`, as 'run "x"', began with.

    Raises:
        ConfigError: they differ.
    """
    then, wanted = dotted(before), dotted(now)
    changed = sorted(key for key in then.keys() | wanted.keys() if then.get(key) != wanted.get(key))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{what} was started with {key}={then.get(key)}, now {key}={wanted.get(key)} is wanted"
            + (f" (and {len(changed) - 1} other settings differ)" if len(changed) > 1 else "")
            + f": choose another --name, or delete {place}"
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
    key = unknown[1] or unknown[2] or f"{unknown[3]}.{unknown[4]}"
    keys = known_keys(parser)
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    siblings = [name for name in keys if name.startswith(key.rpartition(".")[0] + ".")] if "." in key else []
    valid = near or siblings or [name for name in keys if "." not in name]
    return f"unknown setting {key!r}; did you mean {', '.join(valid)}? --help lists all"
