"""A function for each verb of the `twostream` command: it takes the arguments behind the verb, gives the exit code."""

import sys


def complain(text: str, *, verb: str = "") -> None:
    """Say in one line what was refused."""
    print(f"twostream {verb}".rstrip() + f": error: {text}", file=sys.stderr)  # noqa: T201
