"""A function for each verb of the `twostream` command: it takes the arguments behind the verb, gives the exit code."""

import os
import sys
from pathlib import Path

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import printable


def complain(text: str, *, verb: str = "") -> None:
    """Say in one line what was refused."""
    line = printable(" ".join(text.split()))
    print(f"twostream {verb}".rstrip() + f": error: {line}", file=sys.stderr)  # noqa: T201


def require_uri(uri: str, *, setting: str) -> None:
    """Check that files can be written below a local path, before hours of work for them begin.

    Raises:
        ConfigError: a file is in the way, nothing may be written there, or it is a job's uploaded working directory.
    """
    from twostream_ray import storage

    option = setting.rpartition(" ")[2]
    way_out = f"set --{option} to s3://BUCKET/PREFIX or to an absolute path that all nodes see"
    location = storage.absolute(uri)
    storage.refuse_uploaded(location, setting=setting, way_out=way_out)
    if storage.is_s3(location):
        return
    there = next(path for path in (Path(location), *Path(location).parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigError(f"{setting} must be a directory or be below one, {there} is none: choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting}: nothing can be written in {there}: check its rights, or choose another path")
