"""Commands that files start: the script is there, and its settings are ones that its verb has."""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from pathlib import Path

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
        report.add(document, keys, f"no command of a shell: {error}")
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
    refusal = _refusal(verb, tuple(settings))
    if refusal:
        report.add(document, keys, refusal)


@lru_cache(maxsize=64)
def _refusal(verb: str, settings: tuple[str, ...]) -> str | None:
    """What the verb's own parser says of its settings; None if it takes them."""
    from twostream_ray.errors import TwoStreamError
    from twostream_ray.verbs import commands

    kind = commands.settings_class(verb) if verb in commands.VERBS else None
    if kind is None:
        return f"no verb {verb!r} with settings: `twostream --help` lists them"
    try:
        commands.parse(verb, kind, settings)
    except TwoStreamError as error:
        return f"{verb}: {error}"
    return None


def _verb_of(script: Path) -> str:
    """The verb that a script of jobs/ runs: the first text that it hands to `main`."""
    found = re.search(r'main\(\["([\w-]+)"', script.read_text())
    return found[1] if found else script.stem
