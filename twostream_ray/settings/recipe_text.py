"""Strict YAML and JSON loader for recipes (safe loading, YAML 1.1): errors name the file and the line.

A recipe has blocks of settings: strings, numbers, booleans, lists. It cannot run or reference code and must be
small; other features of YAML, and values that YAML versions read differently, are refused.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from twostream_ray import recipes, storage
from twostream_ray.errors import ConfigError, MissingError, StorageError
from twostream_ray.redaction import one_line

LIMIT_BYTES = 4 << 20
"""A recipe of a whole experiment has about 2 kB."""

_MOST_VALUES = 100_000
_MOST_LEVELS = 40
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "a zip archive"}
_NAME = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_FLOAT = "tag:yaml.org,2002:float"
_INT = "tag:yaml.org,2002:int"
_READ_DIFFERENTLY = re.compile(r"[-+]?0[0-9_]+|.*:.*")
"""Integers that YAML 1.1 reads as octal (010 is 8) or base 60 (1:30 is 90), unlike people and YAML 1.2."""
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A parsed recipe."""

    where: str
    """File or option that it was read from."""
    values: Any
    """Nested dictionaries, lists, strings, finite numbers, booleans and None."""
    lines: dict[str, int] = field(default_factory=dict)
    """Dotted name -> line of its value, from 1."""

    def line_of(self, key: str) -> str:
        """File and line of a dotted name, as an error's prefix."""
        line = self.lines.get(key)
        return f"{self.where}: " if line is None else f"{self.where}, line {line}: "


def read_recipe(uri: str) -> Recipe:
    """Read a recipe from a YAML or JSON file, or from the package by its bare name ("fusion_2016").

    Raises:
        ConfigError: it cannot be read, or is not a recipe.
    """
    if uri in recipes.names():
        return parse_recipe(recipes.text(uri), where=f"recipe {uri}")
    try:
        content = storage.read_bytes(uri, limit_bytes=LIMIT_BYTES)
    except MissingError as error:
        raise ConfigError(f"no such recipe: {error}; {_by_name(uri)}") from error
    except StorageError as error:
        raise ConfigError(f"the recipe cannot be read: {error}") from error
    for beginning, encoding in _OTHER_ENCODINGS.items():
        if content.startswith(beginning):
            raise ConfigError(f"{uri}, line 1: expected a recipe in UTF-8, found {encoding}: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{uri}, line {line}: expected a recipe in UTF-8, byte 0x{content[error.start]:02x} is invalid: save it as "
            "UTF-8"
        ) from error
    recipe = parse_recipe(text, where=uri)
    if not isinstance(recipe.values, dict):
        got = "nothing" if recipe.values is None else f"a {type(recipe.values).__name__}"
        raise ConfigError(f"{uri}: a recipe holds settings as `name: value`, got {got}")
    return recipe


def _by_name(uri: str) -> str:
    """A hint at similarly named recipes of the package."""
    name = uri.rpartition("/")[2].partition(".")[0]
    near = difflib.get_close_matches(name, recipes.names(), n=1)
    meant = f"did you mean `--config {near[0]}`, which comes with the package? " if near else ""
    return f"{meant}`twostream recipes` lists those that come with the package"


def parse_recipe(text: str, *, where: str) -> Recipe:
    """Parse a YAML or JSON text read from `where`.

    Raises:
        ConfigError: it is not a recipe.
    """
    try:
        given = json.loads(text, parse_constant=_no_number) if text.lstrip().startswith(("{", "[")) else None
    except (json.JSONDecodeError, RecursionError):
        given = None
    except ValueError as error:
        raise ConfigError(f"{where}: {one_line(error, longest=80)}") from error
    if given is not None:
        # YAML refuses tabs, which JSON has between its values only.
        text = text.replace("\t", " ")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Recipe(where=where, values=None)
        lines = dict(_checked(node, where=where))
        values = loader.construct_document(node) if given is None else given
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{where}, line {line}: character 0x{error.character:02x} is not allowed: remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        hint = " (indent with blanks)" if "'\\t'" in problem else ""
        raise ConfigError(f"{where}, line {mark.line + 1 if mark else 1}: not valid YAML: {problem}{hint}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: settings are nested more than {_MOST_LEVELS} levels deep") from error
    except (ValueError, KeyError) as error:
        problem = one_line(error, longest=80)
        raise ConfigError(
            f"{where}: a number is too large, or a value is not what its tag says ({problem}): leave tags out"
        ) from error
    return Recipe(where=where, values=values, lines=lines)


def write_recipe(values: dict[str, Any]) -> str:
    """Settings (JSON's types) as YAML that `read_recipe` reads back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Loader` would not read back as strings."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (PyYAML's)
        return True


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2's floats (1e-3 is a number); dates are strings."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._depth > _MOST_LEVELS:
            raise RecursionError
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS - {_FLOAT} | {_MERGE}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)


_Dumper.yaml_implicit_resolvers = {
    first: [*resolvers, *yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _checked(root: yaml.Node, *, where: str) -> Iterator[tuple[str, int]]:
    """Check a tree's size and that names are unique, and yield its dotted names with their lines."""
    seen = 0
    waiting: list[tuple[yaml.Node, str, int]] = [(root, "", 0)]
    while waiting:
        node, name, depth = waiting.pop()
        line = node.start_mark.line + 1
        at_line = f"{where}, line {line}: "
        seen += 1
        if seen > _MOST_VALUES:
            raise ConfigError(
                f"{at_line}more than {_MOST_VALUES:,} values, aliases counted in full: no recipe has so many"
            )
        if depth > _MOST_LEVELS:
            raise ConfigError(f"{at_line}settings are nested more than {_MOST_LEVELS} levels deep")
        if node.tag not in _TAGS:
            raise ConfigError(
                f"{at_line}the tag {node.tag} is not allowed in settings: they are texts, numbers and lists"
            )
        if node.tag == _INT and _READ_DIFFERENTLY.fullmatch(node.value):
            raise ConfigError(
                f"{at_line}{name or 'a setting'} wants an integer without leading zeros and colons, got {node.value}, "
                "which YAML 1.1 reads as octal or base 60: write it in digits, or in quotes if it is a text"
            )
        if node.tag == _FLOAT and not _is_finite(node.value):
            raise ConfigError(f"{at_line}{name or 'a setting'} must be a finite number, got {node.value}")
        if name:
            yield name, line
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, f"{name}[{number}]", depth + 1) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                key_line = key.start_mark.line + 1
                if key.tag not in (_NAME, _MERGE):
                    got = key.value if isinstance(key, yaml.ScalarNode) else "a list or block"
                    raise ConfigError(f"{where}, line {key_line}: expected the name of a setting, got {got}")
                if key.value in first:
                    full = f"{name}.{key.value}".lstrip(".")
                    raise ConfigError(
                        f"{where}, line {key_line}: {full} is repeated, first in line {first[key.value]}: the second "
                        "would replace the first; merge them"
                    )
                first[key.value] = key_line
                waiting.append((value, f"{name}.{key.value}".lstrip("."), depth + 1))


def _no_number(name: str) -> float:
    raise ValueError(f"expected a finite number, got {name}")


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace("_", "")))
    except ValueError:  # .nan and .inf, as YAML writes them
        return False
