"""Deterministic sample order.

An epoch is cut into a fixed number of lanes assigned round-robin to workers, so the order does not depend on world
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet

_AT_ONCE = 1 << 22
"""Clips whose temporary numbers are in memory together."""


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
        position //= ROWS_PER_GROUP
        group_of = _numbered(position) if in_order else np.unique(position, return_inverse=True)[1]
        del position
        order = _shuffled(group_of, rng=rng)
        del group_of
    else:
        order = np.arange(len(members)) if in_order else np.argsort(position, kind="stable")
    for start in range(0, len(order), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        order[part] = members[order[part]]
    return [lane[skipped:] for lane in np.array_split(order, lanes)]


def _stored_at(shard_set: ShardSet, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where clips are stored, as one number each that grows with shard and row; row groups are its multiples of 16."""
    shards, rows = (shard_set.index[name].chunks for name in ("shard", "row"))
    position = np.empty(len(shard_set.index), np.int64)
    begin = 0
    # A chunk at a time, as Arrow would keep the memory of a whole column.
    for shard, row in zip(shards, rows, strict=True):
        part = position[begin : begin + len(shard)]
        part[:] = shard.to_numpy()
        part <<= 32
        part |= row.to_numpy()
        begin += len(shard)
    return position if len(members) == len(position) else position[members]


def _numbered(ascending: NDArray[np.int64]) -> NDArray[np.int32]:
    """0, 1, ... for the distinct ones of numbers in ascending order, at each place where they stand."""
    begins = np.zeros(len(ascending), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=begins[1:])
    return np.cumsum(begins, dtype=np.int32)


def _shuffled(group_of: NDArray[Any], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Clips, given by the numbers of their groups, by their group's drawn rank, and within it by one of their own.

    Sorts one array of numbers that hold both ranks, in place: of 100 million clips an argsort of two keys takes several
    times as long, and several times the memory.
    """
    count = int(group_of.max(initial=-1)) + 1
    keys: NDArray[np.int64] = rng.permutation(len(group_of))
    rank_of_group = rng.permutation(count)
    clip_of_rank = np.empty(len(keys), np.int32 if len(keys) < 2**31 else np.int64)
    bits = len(keys).bit_length()
    for start in range(0, len(keys), _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, len(keys)))
        clip_of_rank[keys[part]] = np.arange(part.start, part.stop, dtype=clip_of_rank.dtype)
        keys[part] |= rank_of_group[group_of[part]] << bits
    keys.sort()
    keys &= (1 << bits) - 1
    for start in range(0, len(keys), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        keys[part] = clip_of_rank[keys[part]]
    return keys


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
