"""A verb of the command line (command pattern): what it is for, its settings, the function that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of the `twostream` command."""

    summary: str
    """What it does, in a line."""
    function: str
    """module:function below twostream_ray.verbs; it takes the arguments behind the verb and gives the exit code."""
    settings: str | None = None
    """module:Class below twostream_ray; None for a verb without settings."""
    positionals: Mapping[str, str] = field(default_factory=dict)
    """Dotted names of settings that may be given without them, in order -> how they are written in help."""
    examples: Sequence[str] = ()
    """Commands to begin with, without `twostream VERB`."""
    shown: Sequence[str] = ()
    """Dotted names of the settings in the short help."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Options that are no settings -> what they do."""
