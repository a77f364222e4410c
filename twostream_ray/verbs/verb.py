"""Command pattern: a verb of the command line with its summary, settings class and function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A subcommand of `twostream`."""

    summary: str
    """What it does, in one line."""
    function: str
    """module:function in twostream_ray.verbs, from the verb's arguments to the exit code."""
    settings: str | None = None
    """module:Class in twostream_ray; None for a verb without settings."""
    positionals: Mapping[str, str] = field(default_factory=dict)
    """Dotted names of the positional settings, in order -> their placeholder in help."""
    examples: Sequence[str] = ()
    """Example arguments, without `twostream VERB`."""
    shown: Sequence[str] = ()
    """Dotted names of the settings in the short help."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Options that are not settings -> what they do."""
