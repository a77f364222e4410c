"""Validation of user-given names of runs, models and data sets, which become folder names and MLflow names."""

from __future__ import annotations

from twostream_ray.errors import ConfigError

_LONGEST_BYTES = 100
"""A folder's name may have 255; a trial's is longer than its search's."""

_SHOWN = 60


def require_name(name: str, *, setting: str, blanks: bool = False) -> None:
    """Refuse names that are empty, paths, hidden, look like options, are unprintable or too long.

    Raises:
        ConfigError: names the setting, the rule and the value.
    """
    fine = (
        bool(name)
        and (name[0].isalnum() or name[0] == "_")
        and name.isprintable()
        and not set(name) & set("/\\")
        and (not any(character.isspace() for character in name) or (blanks and name == name.strip()))
        # A surrogate stands for a byte that is not UTF-8.
        and len(name.encode(errors="surrogatepass")) <= _LONGEST_BYTES
    )
    if not fine:
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        rule = "slashes and control characters" if blanks else "blanks, slashes and control characters"
        raise ConfigError(
            f"{setting} must be a word without {rule} that begins with a letter, a digit or _ and has at most "
            f"{_LONGEST_BYTES} bytes, got {shown!r}"
        )
