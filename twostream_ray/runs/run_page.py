"""MLflow page of a run: its data set as a logged input, its settings as a recipe for `--config`, and a description."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from twostream_ray import tracking
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ShardError
from twostream_ray.redaction import is_secret_name, redact
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.settings.recipe_text import write_recipe
from twostream_ray.storage.temporary_folders import temporary_folder

RECIPE = "recipe.yaml"
"""Artefact with a run's settings, for a verb's `--config`."""


def log_data(
    handle: tracking.RunHandle,
    shard_set: ShardSet,
    *,
    splits: Sequence[str],
    context: Literal["training", "evaluation"],
) -> None:
    """Log the shards as a run's input, with the clips of the splits that it uses; never raises for MLflow."""
    clips = {split: len(shard_set.split(split)) for split in splits}
    profile = {
        "num_rows": len(shard_set.index),
        "classes": len(shard_set.classes),
        "clips": clips,
        "quarantined": {split: shard_set.quarantined.get(split, 0) for split in splits},
        "frames": int(shard_set.index["num_frames"].to_numpy().sum()),
        "flow_contract": shard_set.contract.hash,
    }
    tracking.log_data(
        handle,
        name=shard_set.data_set or tracking.UNNAMED_DATA,
        manifest_hash=shard_set.hash,
        source=shard_set.uri,
        profile=profile,
        context=context,
    )


def used_splits(data: DataConfig, shard_set: ShardSet) -> list[str]:
    """The splits that a training uses, as far as they exist; a search needs no test split."""
    names = [data.split_to_train, data.split_to_validate, data.test_split]
    found = []
    for name in dict.fromkeys(name for name in names if name is not None):
        with contextlib.suppress(ShardError):
            shard_set.split(name)
            found.append(name)
    return found


def log_recipe(handle: tracking.RunHandle, config: object, *, verb: str) -> None:
    """Log the settings of a run, a dataclass, as a recipe; never raises if MLflow is unreachable."""
    with temporary_folder() as scratch:
        path = Path(scratch, RECIPE)
        path.write_text(recipe_of(config, verb=verb), encoding="utf-8")
        tracking.log_artifacts(handle, [path])


def recipe_of(config: Any, *, verb: str) -> str:
    """The settings as YAML for the verb's `--config`; settings with a secret are replaced by a comment."""
    left_out: list[str] = []
    values = _without_secrets(json.loads(json.dumps(asdict(config))), "", left_out)
    lines = [f"# twostream {verb} --config {RECIPE} --name ANOTHER_NAME"]
    lines += [f"# {name} is left out, as it contains a secret" for name in left_out]
    return "\n".join([*lines, write_recipe(values)])


def _without_secrets(value: Any, name: str, left_out: list[str]) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        full = f"{name}.{key}".lstrip(".")
        text = "" if isinstance(inner, dict) else json.dumps(inner)
        if is_secret_name(full) or redact(text) != text:
            left_out.append(full)
        else:
            kept[key] = _without_secrets(inner, full, left_out)
    return kept


def network_summary(config: ExperimentConfig, *, parameters: int) -> str:
    """The network in a sentence."""
    model = config.model
    if model.architecture == "clip3d":
        body = "RGB frames only, no flow"
    elif model.streams != "both":
        body = f"{model.streams} stream alone"
    elif model.architecture == "fused":
        where = ", ".join(model.fusion.layers)
        body = f"two streams, {model.fusion.method} fusion at {where}, {model.fusion.temporal} over time"
    else:
        body = f"two streams, {model.architecture}"
    return f"{body}; {' and '.join(model.backbones)}; {parameters:,} parameters"


def data_summary(shard_set: ShardSet) -> str:
    """The data in a sentence."""
    name = shard_set.data_set or tracking.UNNAMED_DATA
    count = len(shard_set.classes)
    return f"{name}: {count} class{'es' if count > 1 else ''}, manifest {shard_set.hash[:12]}"


def description(config: ExperimentConfig, shard_set: ShardSet, *, parameters: int, results: Sequence[str] = ()) -> str:
    """Markdown description of a training for MLflow: `results`, network and data."""
    clips = ", ".join(f"{split} {len(shard_set.split(split)):,}" for split in used_splits(config.data, shard_set))
    paragraphs = [
        *results,
        f"**Network.** {network_summary(config, parameters=parameters)}.",
        f"**Data.** {data_summary(shard_set)}; clips: {clips}; shards {redact(shard_set.uri)}.",
        f"**Reproduce.** `twostream train --config {RECIPE} --name ANOTHER_NAME`, with the artefact of this name.",
    ]
    return "\n\n".join(paragraphs)
