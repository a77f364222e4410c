"""Recipes that come with the package: YAML settings of whole experiments, found by their names, as package data."""

from __future__ import annotations

from importlib import resources

_ENDING = ".yaml"


def names() -> list[str]:
    """Names of all recipes, as `--config` takes them, in alphabetical order."""
    files = (file.name for file in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(_ENDING) for name in files if name.endswith(_ENDING))


def text(name: str) -> str:
    """A recipe's YAML with its comments.

    Raises:
        KeyError: no recipe has that name.
    """
    if name not in names():
        raise KeyError(name)
    return resources.files(__name__).joinpath(name + _ENDING).read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What a recipe is for: the first line of its comment.

    Raises:
        KeyError: no recipe has that name.
    """
    return text(name).partition("\n")[0].removeprefix("#").strip()
