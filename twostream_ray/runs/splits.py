"""Split checks: options to give if a shard set lacks a split, and leakage (clips in several splits)."""

from __future__ import annotations

import logging
import re

import numpy as np

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ShardError

_ROLES = {"train_split": "train", "validation_split": "val", "test_split": "test"}
"""Setting of `data` -> prefix of the splits that it names."""
_NUMBER = re.compile(r"\d*\Z")

_log = logging.getLogger(__name__)


def split_options(data: DataConfig, shard_set: ShardSet) -> str:
    """Options with existing splits for all settings that name missing ones, to end an error message with."""
    known = shard_set.split_names
    if set(known) <= {"all"}:
        return "ingest again with --catalog.split '[0.7, 0.15, 0.15]' (train, val, test)"
    # The splits of UCF101 belong together by number: train2 is tested on test2.
    numbers = [_NUMBER.search(split)[0] for split in (data.train_split, data.test_split) if split in known]  # type: ignore[index]
    options = []
    for setting, role in _ROLES.items():
        named = getattr(data, setting)
        if named is None or named in known:
            continue
        found = [split for split in known if split.startswith(role)]
        same = [split for split in found if _NUMBER.search(split)[0] in numbers]  # type: ignore[index]
        if found:
            options.append(f"--data.{setting} {(same or found)[0]}")
        elif setting == "validation_split":
            options.append("--data.validation_split null --data.validation_fraction 0.1")
        else:
            options.append(f"--data.{setting} SPLIT")
    return f"give {' '.join(options)}"


def evaluation_option(split: str, shard_set: ShardSet) -> str:
    """The option with an existing split instead of `split`, to end an error message with."""
    known = shard_set.split_names
    role = next((role for role in _ROLES.values() if split.startswith(role)), split)
    return f"give --split {next((one for one in known if one.startswith(role)), 'SPLIT')}"


def warn_of_shared_clips(data: DataConfig, shard_set: ShardSet) -> None:
    """Warn of leakage: clips that a network is tested on although it was trained or its checkpoint chosen on them."""
    split = data.split_to_validate
    tested = shard_set.split_names if split is None else [*shard_set.split_names, split]
    consequences = {
        data.split_to_train: "they are trained on, so accuracy on them does not generalise",
        **({} if split is None else {split: _chosen_by(data)}),
    }
    if data.test_split in tested:
        _warn(shard_set, data.test_split, consequences)
    if split is not None:
        _warn(shard_set, split, {data.split_to_train: "they are trained on, so they select an overfitted checkpoint"})


def count_clips_trained_on(train_split: str | None, shard_set: ShardSet, split: str) -> int:
    """Number of clips of a split that are in a model's training split; 0 if that is unknown.

    By the current shards: a clip that was added to the training split since counts too.

    Raises:
        ShardError: the shards have no such `split`.
    """
    members = shard_set.split(split)
    if train_split is None:
        return 0
    try:
        trained = shard_set.split(train_split)
    except ShardError:
        return 0
    return len(np.intersect1d(members, trained, assume_unique=True))


def warn_of_clips_trained_on(train_split: str | None, shard_set: ShardSet, split: str, *, model: str) -> None:
    """Warn how many clips of a split a model was trained on, by the training split that it names.

    Raises:
        ShardError: the shards have no such `split`.
    """
    if shared := count_clips_trained_on(train_split, shard_set, split):
        _log.warning(
            "%s was trained on %d of the %d clips of %s (they are in %s): accuracy on them does not generalise",
            *(model, shared, len(shard_set.split(split)), split, train_split),
        )


def _chosen_by(data: DataConfig) -> str:
    way_out = (
        ""
        if data.validation_fraction is not None
        else ("; --data.validation_split null --data.validation_fraction 0.1 validates on clips of the training split")
    )
    return f"the checkpoint is chosen by them, so accuracy on them is not a number to quote{way_out}"


def _warn(shard_set: ShardSet, split: str, consequences: dict[str, str]) -> None:
    members = shard_set.split(split)
    for other, consequence in consequences.items():
        shared = np.intersect1d(members, shard_set.split(other), assume_unique=True)
        if len(shared):
            _log.warning(
                "%d of the %d clips of %s are in %s too: %s", len(shared), len(members), split, other, consequence
            )
