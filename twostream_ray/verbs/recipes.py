"""The subcommands `recipes` and `schema`: the recipes of the package, and the JSON Schema of a verb's recipe."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap

from twostream_ray import recipes
from twostream_ray.errors import ConfigError


def list_recipes(arguments: list[str]) -> int:
    """List the recipes, or print one."""
    names = recipes.names()
    if not arguments:
        indent = max(map(len, names)) + 2
        width = max(shutil.get_terminal_size().columns, 2 * indent)
        for name in names:
            lines = textwrap.wrap(recipes.summary(name), width - indent)
            print(f"{name:<{indent}}" + ("\n" + " " * indent).join(lines))  # noqa: T201
        return 0
    name = arguments[0].removesuffix(".yaml")
    if len(arguments) > 1 or name not in names:
        near = difflib.get_close_matches(name, names, n=1) or names
        raise ConfigError(
            f"recipes wants the name of one recipe or nothing, got {' '.join(arguments)}: did you mean "
            f"{', '.join(near)}? `twostream recipes` lists them"
        )
    print(recipes.text(name), end="")  # noqa: T201
    return 0


def print_schema(arguments: list[str]) -> int:
    """Print the JSON Schema of a verb's recipe."""
    from twostream_ray.settings.json_schema import recipe_schema
    from twostream_ray.verbs.commands import VERBS, settings_class

    verb, kinds = " ".join(arguments), {name: settings_class(name) for name in VERBS}
    kind = kinds.get(verb)
    if kind is None:
        known = [name for name, one in kinds.items() if one is not None]
        near = difflib.get_close_matches(verb, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"schema wants a verb that takes recipes, got {verb or 'nothing'}: {meant}{', '.join(known)}")
    others = {name: one for name, one in kinds.items() if one is not None and name != verb}
    schema = recipe_schema(kind, title=f"Recipe of `twostream {verb}`", others=others)
    print(json.dumps(schema, indent=1))  # noqa: T201
    return 0
