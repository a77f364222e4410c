"""Best trial of a search as a recipe: best.yaml in the search's folder, and the command that trains it longer."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ShardError
from twostream_ray.redaction import redact
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.search.records import TrialRecord
from twostream_ray.runs.search.settings import TuneConfig
from twostream_ray.settings.recipe_text import write_recipe
from twostream_ray.storage.temporary_folders import own_folder_path

_NAME = "best.yaml"
_LONGER_FACTOR = 2
"""The command trains this many times the epochs of the search."""


def write_best_recipe(
    best: TrialRecord, experiment: ExperimentConfig, *, config: TuneConfig, shard_set: ShardSet, folder: SearchFolder
) -> None:
    """Write the settings of the best trial, `experiment`, as a recipe that `train` takes under any --name.

    Raises:
        StorageError: the folder cannot be written.
    """
    split = str(config.data.split_to_validate)
    text = (
        f"# {best.name}, the best trial of search {config.name}: top-1 {best.score or 0.0:.1%} on {split} in "
        f"{len(best.history)} epochs.\n# {longer_command(best, experiment, folder=folder)}\n"
    )
    data = experiment.data
    if data.sample_cache is not None and Path(data.sample_cache).parent == own_folder_path():
        # The trials' shared samples are deleted with the search.
        data = replace(data, sample_cache=None)
    try:
        shard_set.split(data.test_split)
    except ShardError:
        text += f"# The shards have no split {data.test_split}, so the model is tested on {split}.\n"
        data = replace(data, test_split=split)
    uri = config.tracking.uri
    # A tracking URI that contains a password has to come from the environment.
    tracking = replace(config.tracking, uri=None) if uri is not None and redact(uri) != uri else config.tracking
    values = asdict(replace(experiment, data=data, tracking=tracking, storage=config.storage))
    del values["name"]
    text += write_recipe(json.loads(json.dumps(values)))
    storage.write_bytes(storage.join(folder.uri, _NAME), text.encode())


def longer_command(best: TrialRecord, experiment: ExperimentConfig, *, folder: SearchFolder) -> str:
    """The command that trains the best trial's settings for more epochs, under a name of its own."""
    recipe = shlex.quote(storage.join(folder.uri, _NAME))
    name = shlex.quote(f"{best.name}-longer")
    epochs = _LONGER_FACTOR * experiment.training.epochs
    return f"twostream train --config {recipe} --name {name} --training.epochs {epochs}"


def has_best_recipe(folder: SearchFolder) -> bool:
    """Whether the search has written its recipe; one finished by an earlier version of this package has not."""
    return storage.exists(storage.join(folder.uri, _NAME))
