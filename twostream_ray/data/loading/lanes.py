"""Passes over a split cut into lanes: who reads what, in an order that no number of workers changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One pass over a split."""

    split: str
    """Name of the split."""

    epoch: int = 0
    """Epoch, from 0: with the seed it fixes order and draws of a training pass."""

    training: bool = False
    """Shuffled, one drawn view a clip; otherwise in order of the index, the evenly spaced test views."""

    first_step: int = 0
    """Steps that an interrupted pass has behind it: it goes on with this one, whatever the number of workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Rows of one row group that a lane needs one after the other."""

    pass_index: int
    lane: int
    shard: int
    group: int
    rows: tuple[int, ...]
    """Row numbers within the row group."""
    clips: tuple[int, ...]
    """Positions in the index, one per row."""


def plan_lanes(shard_set: ShardSet, a_pass: Pass, *, lanes: int, seed: int) -> list[NDArray[np.int64]]:
    """Index positions of a pass's clips, lane by lane, lengths equal to within one clip.

    Training shuffles row groups, and rows inside each; rows were shuffled before sharding.

    Raises:
        ShardError: the set has no such split.
    """
    members = shard_set.split(a_pass.split)
    shard = shard_set.index["shard"].to_numpy()[members].astype(np.int64)
    row = shard_set.index["row"].to_numpy()[members].astype(np.int64)
    if a_pass.training:
        rng = np.random.Generator(np.random.Philox(key=[seed, a_pass.epoch]))
        groups, group_of = np.unique(shard << 32 | row // ROWS_PER_GROUP, return_inverse=True)
        order = np.lexsort((rng.permutation(len(members)), rng.permutation(len(groups))[group_of]))
    else:
        order = np.lexsort((row, shard))
    return np.array_split(members[order], lanes)


def plan_units(
    shard_set: ShardSet, lanes: Sequence[NDArray[np.int64]], *, pass_index: int, rank: int, world_size: int
) -> list[Unit]:
    """What a worker has to read for a pass, in the order in which its steps need it."""
    shard = shard_set.index["shard"].to_numpy()
    row = shard_set.index["row"].to_numpy()
    starts: list[tuple[int, int, Unit]] = []
    for lane in range(rank, len(lanes), world_size):
        clips = lanes[lane]
        groups = row[clips] // ROWS_PER_GROUP
        cuts = np.flatnonzero((np.diff(groups) != 0) | (np.diff(shard[clips]) != 0)) + 1
        for start, run in zip([0, *cuts.tolist()], np.split(clips, cuts), strict=True):
            if len(run):
                unit = Unit(
                    pass_index=pass_index,
                    lane=lane,
                    shard=int(shard[run[0]]),
                    group=int(groups[start]),
                    rows=tuple((row[run] % ROWS_PER_GROUP).tolist()),
                    clips=tuple(run.tolist()),
                )
                starts.append((start, lane, unit))
    return [unit for _, _, unit in sorted(starts, key=lambda entry: entry[:2])]
