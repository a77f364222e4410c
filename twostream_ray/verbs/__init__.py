"""Subcommands of the `twostream` command: a function for each verb, from its arguments to an exit code."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.redaction import printable


def complain(text: str, *, verb: str = "") -> None:
    """Print an error as one line on stderr."""
    line = printable(" ".join(text.split()))
    print(f"twostream {verb}".rstrip() + f": error: {line}", file=sys.stderr)  # noqa: T201


def announce(config: Any, shard_set: Any, *, folder: Any, trials: int | None = None) -> None:
    """Print the training plan, unless the run in `folder` has ended, and what starts now.

    Raises:
        ConfigError, WeightsError, ClusterError: as `plan_training`.
    """
    from twostream_ray import storage
    from twostream_ray.console import console

    if storage.exists(folder.report):
        console.print(f"{folder.what} has ended before, as {folder.report} says")
    else:
        from twostream_ray.runs.train.plan import plan_training

        try:
            lines = plan_training(config, shard_set, folder=folder).lines()
        except (ConfigError, WeightsError) as error:
            if trials is None:
                raise
            # The searched settings may be the ones that make the network valid.
            lines = [f"note: the settings outside the search space are not valid by themselves ({error})"]
        if config.stages.enabled:
            from twostream_ray.runs.score.staged import stage_lines

            lines = [*stage_lines(config), *lines]
        for line in lines:
            name = re.match(r"\S+ {2,}", line)
            console.sentence(line, indent=name.end() if name else 0)
        if trials is not None:
            console.sentence(
                f"search: at most {trials} trials of up to the epochs above, with values of the search space"
            )
    console.print("dry run: nothing was started" if config.dry_run else "starting Ray")


def require_uri(uri: str, *, setting: str) -> None:
    """Check that files can be written under a local path, before hours of work.

    Raises:
        ConfigError: the path is under a file, is not writable, or is in a job's uploaded working directory.
    """
    from twostream_ray import storage

    option = setting.rpartition(" ")[2]
    way_out = f"set --{option} to s3://BUCKET/PREFIX or to an absolute path that all nodes see"
    location = storage.absolute(uri)
    storage.refuse_uploaded(location, setting=setting, way_out=way_out)
    if storage.is_s3(location):
        return
    existing = next(path for path in (Path(location), *Path(location).parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ConfigError(f"{setting} must be a directory or be in one, {existing} is a file: choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting}: {existing} is not writable: check its permissions, or choose another path")
