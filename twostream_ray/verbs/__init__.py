"""A function for each verb of the `twostream` command: it takes the arguments behind the verb, gives the exit code."""

import sys

from twostream_ray.names import printable


def complain(text: str, *, verb: str = "") -> None:
    """Say in one line what was refused."""
    line = printable(" ".join(text.split()))
    print(f"twostream {verb}".rstrip() + f": error: {line}", file=sys.stderr)  # noqa: T201
