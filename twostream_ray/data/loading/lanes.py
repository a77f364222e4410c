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
    position = _stored_at(shard_set, members)
    in_order = bool((position[1:] > position[:-1]).all())
    if a_pass.training:
        rng = np.random.Generator(np.random.Philox(key=[seed, a_pass.epoch]))
        order = _shuffled(position // ROWS_PER_GROUP, in_order=in_order, rng=rng)
    else:
        order = np.arange(len(members)) if in_order else np.argsort(position, kind="stable")
    return [lane[skipped:] for lane in np.array_split(members[order], lanes)]


def _stored_at(shard_set: ShardSet, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where clips are stored, as one number each that grows with shard and row; row groups are its multiples of 16."""
    position: NDArray[np.int64] = shard_set.index["shard"].to_numpy()[members].astype(np.int64)
    position <<= 32
    position |= shard_set.index["row"].to_numpy()[members]
    return position


def _shuffled(groups: NDArray[np.int64], *, in_order: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `groups` by the drawn rank of their group, and within it by a drawn rank of their own.

    Sorts one array of numbers that hold both ranks: of 100 million clips two keys, or an argsort, take several times as
    long, and twice the memory.
    """
    if in_order:
        begins = np.empty(len(groups), np.bool_)
        begins[:1] = True
        np.not_equal(groups[1:], groups[:-1], out=begins[1:])
        group_of = np.cumsum(begins, dtype=np.int32)
        group_of -= 1
        count = int(group_of[-1]) + 1 if len(group_of) else 0
    else:
        distinct, group_of = np.unique(groups, return_inverse=True)
        count = len(distinct)
    rank = rng.permutation(len(groups))
    of_group = rng.permutation(count)
    bits = max(1, len(groups)).bit_length()
    keys: NDArray[np.int64] = of_group[group_of]
    keys <<= bits
    keys |= rank
    holder = np.empty(len(groups), np.int64)
    holder[rank] = np.arange(len(groups))
    del rank, group_of
    keys.sort()
    keys &= (1 << bits) - 1
    return holder[keys]


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
