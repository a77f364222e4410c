"""Deterministic sample order.

An epoch is cut into a fixed number of lanes assigned round-robin to workers, so the order does not depend on world
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

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
    """Steps that an interrupted pass has behind it: it resumes with this one, whatever the number of workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Clips of one row group that a lane needs one after the other."""

    pass_index: int
    """Index of the pass among those of its loader."""
    lane: int
    """Index of the lane."""
    shard: int
    """Index of the shard file."""
    clips: tuple[int, ...]
    """Positions in the index."""


def lane_lengths(num_clips: int, *, lanes: int, skipped: int = 0) -> list[int]:
    """Clips of each lane of a pass without the first `skipped` of each: what `plan_lanes` cuts, without their order."""
    shortest, longer = divmod(num_clips, lanes)
    return [max(shortest + (lane < longer) - skipped, 0) for lane in range(lanes)]


def plan_lanes(
    shard_set: ShardSet, a_pass: Pass, *, lanes: int, seed: int, skipped: int = 0
) -> list[NDArray[np.int64]]:
    """Index positions of a pass's clips, lane by lane, lengths equal to within one clip, less the first `skipped` each.

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
    return [lane[skipped:] for lane in np.array_split(members[order], lanes)]


def plan_units(
    shard_set: ShardSet, lanes: Sequence[NDArray[np.int64]], *, pass_index: int, rank: int, world_size: int
) -> list[Unit]:
    """The units that a worker reads for a pass, in the order in which its steps need them."""
    shard = shard_set.index["shard"].to_numpy()
    row = shard_set.index["row"].to_numpy()
    starts: list[tuple[int, int, Unit]] = []
    for lane in range(rank, len(lanes), world_size):
        clips = lanes[lane]
        shards, groups = shard[clips], row[clips] // ROWS_PER_GROUP
        cuts = np.flatnonzero((np.diff(groups) != 0) | (np.diff(shards) != 0)) + 1
        bounds = [0, *cuts.tolist(), len(clips)] if len(clips) else []
        positions, of_shard = clips.tolist(), shards.tolist()
        for start, end in pairwise(bounds):
            unit = Unit(pass_index=pass_index, lane=lane, shard=of_shard[start], clips=tuple(positions[start:end]))
            starts.append((start, lane, unit))
    return [unit for _, _, unit in sorted(starts, key=itemgetter(0, 1))]
