"""Commands in cluster files: the script exists, and its verb has the settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from checks.documents import Document, Keys, Report


def option_of(command: str, name: str) -> str | None:
    """The value of an option; None where it is not given."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def check_command(root: Path, document: Document, keys: Keys, command: str, report: Report) -> None:
    """A `python jobs/VERB.py ...` or `twostream VERB ...`; others are refused, as nobody could check them."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        report.add(document, keys, f"not a shell command: {error}")
        return
    script = re.fullmatch(r"jobs/(\w+)\.py", words[1]) if words[:1] == ["python"] and len(words) > 1 else None
    if script:
        if not (root / words[1]).is_file():
            report.add(document, keys, f"{words[1]} is not there: jobs/ has the scripts")
            return
        verb, settings = _verb_of(root / words[1]), words[2:]
    elif words[:1] == ["twostream"] and len(words) > 1:
        verb, settings = words[1], words[2:]
    elif words[1:3] == ["-m", "twostream_ray"] and len(words) > 3:
        verb, settings = words[3], words[4:]
    else:
        report.add(document, keys, f"wants `python jobs/VERB.py ...` or `twostream VERB ...`, got {command!r:.80}")
        return
    refusal, config = _parsed(verb, tuple(settings))
    for text in [refusal] if refusal else [*_lost_places(config), *_missing_libraries(root, config)]:
        report.add(document, keys, f"{verb}: {text}")


_PLACES = ("storage", "out", "shards", "videos", "data.shards", "catalog.root", "catalog.lists")
"""Settings that name a place which is to be there before or after the machines."""


def _lost_places(config: Any) -> Iterator[str]:
    for name in _PLACES:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        for place in value if isinstance(value, list | tuple) else [value]:
            if place is None or "://" in str(place) or str(place).startswith("/"):
                continue
            if re.match("[a-z0-9]+:/", str(place)):
                yield f"{name} is {str(place)!r}, no URI: write s3://BUCKET/PREFIX"
            else:
                yield (
                    f"{name} is {str(place)!r}, a folder of the node's own, which goes with the node: name an s3:// "
                    "prefix, or an absolute path of a network drive"
                )


def _missing_libraries(root: Path, config: Any) -> Iterator[str]:
    """Extras of the package that a network wants and that the image lacks."""
    found = re.search(r"\"\.\[([\w,]+)\]\"", (root / "cluster/Dockerfile").read_text())
    extras = found[1].split(",") if found else []
    for library in getattr(getattr(config, "model", None), "libraries", ()):
        if library == "timm" and library not in extras:
            yield f'the network is of timm, which the image lacks: install ".[serve,{library}]" in cluster/Dockerfile'


@lru_cache(maxsize=64)
def _parsed(verb: str, settings: tuple[str, ...]) -> tuple[str | None, Any]:
    """What the verb's own parser says of its settings, None if it takes them, and what it makes of them."""
    from twostream_ray.errors import TwoStreamError
    from twostream_ray.verbs import commands

    kind = commands.settings_class(verb) if verb in commands.VERBS else None
    if kind is None:
        return "no verb with settings: `twostream --help` lists them", None
    try:
        return None, commands.parse(verb, kind, settings)
    except TwoStreamError as error:
        return str(error), None


def _verb_of(script: Path) -> str:
    """The verb that a script of jobs/ runs: the first text that it hands to `main`."""
    found = re.search(r'main\(\["([\w-]+)"', script.read_text())
    return found[1] if found else script.stem
