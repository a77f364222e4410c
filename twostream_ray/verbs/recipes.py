"""The verb that lists and prints the recipes of the package. It parses no settings, so it answers at once."""

from __future__ import annotations

import difflib
import shutil
import textwrap

from twostream_ray import recipes
from twostream_ray.errors import ConfigError


def list_recipes(arguments: list[str]) -> int:
    """Names with a line each, or the text of one."""
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
