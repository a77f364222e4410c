"""A function for each verb of the `twostream` command: it takes the arguments behind the verb, gives the exit code."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.redaction import printable


def complain(text: str, *, verb: str = "") -> None:
    """Say in one line what was refused."""
    line = printable(" ".join(text.split()))
    print(f"twostream {verb}".rstrip() + f": error: {line}", file=sys.stderr)  # noqa: T201


def announce(config: Any, shard_set: Any, *, folder: Any, trials: int | None = None) -> None:
    """Print what will be trained, unless the run in `folder` has ended, and what starts now.

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
            # What is searched for may be what makes a network of them.
            lines = [f"note: the settings beside the space make no training by themselves ({error})"]
        if config.stages.enabled:
            from twostream_ray.runs.score.staged import stage_lines

            lines = [*stage_lines(config), *lines]
        for line in lines:
            name = re.match(r"\S+ {2,}", line)
            console.sentence(line, indent=name.end() if name else 0)
        if trials is not None:
            console.sentence(
                f"search: at most {trials} trials of up to the epochs above, their space over these settings"
            )
    console.print("dry run: nothing was started" if config.dry_run else "starting Ray")


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
