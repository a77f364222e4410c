"""Deterministic distributed sampler: the sample order does not depend on world size.

An epoch is cut into a fixed number of lanes, which are assigned round-robin to workers.
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
"""Clips per chunk, to bound the memory of temporary arrays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One pass over a split: a training epoch, or a validation."""

    split: str
    """Name of the split."""

    epoch: int = 0
    """Epoch, from 0; with the seed it determines the order and the random draws of a training pass."""

    training: bool = False
    """True: shuffled, one random view per clip. False: in index order, with the evenly spaced test views."""

    first_step: int = 0
    """Step to start with, to resume an interrupted pass, with any number of workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Consecutive clips of a lane that are in the same row group: the unit of reading."""

    pass_index: int
    """Index of the pass in its loader."""
    lane: int
    """Index of the lane."""
    shard: int
    """Index of the shard file."""
    clips: tuple[int, ...]
    """Positions in the shard set's index."""


def lane_lengths(num_clips: int, *, lanes: int, skipped: int = 0) -> list[int]:
    """Number of clips in each lane of a pass, less the first `skipped` of each; the lengths of `plan_lanes`."""
    shortest, longer = divmod(num_clips, lanes)
    return [max(shortest + (lane < longer) - skipped, 0) for lane in range(lanes)]


def plan_lanes(
    shard_set: ShardSet, a_pass: Pass, *, lanes: int, seed: int, skipped: int = 0
) -> list[NDArray[np.int64]]:
    """Positions in the index of a pass's clips, lane by lane, less the first `skipped` of each.

    Lane lengths differ by at most one clip. A training pass shuffles row groups, and rows within each; rows were also
    shuffled before sharding.

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
    """Sort keys of clips by storage position, (clips,) int64: shard << 32 | row; key // 16 numbers row groups."""
    shards, rows = (shard_set.index[name].chunks for name in ("shard", "row"))
    position = np.empty(len(shard_set.index), np.int64)
    begin = 0
    # Chunk by chunk: converting a whole column would make Arrow keep its memory.
    for shard, row in zip(shards, rows, strict=True):
        part = position[begin : begin + len(shard)]
        part[:] = shard.to_numpy()
        part <<= 32
        part |= row.to_numpy()
        begin += len(shard)
    return position if len(members) == len(position) else position[members]


def _numbered(ascending: NDArray[np.int64]) -> NDArray[np.int32]:
    """Dense ranks of sorted numbers: equal ones share a rank, ranks are 0, 1, ..."""
    begins = np.zeros(len(ascending), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=begins[1:])
    return np.cumsum(begins, dtype=np.int32)


def _shuffled(group_of: NDArray[Any], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle groups, and clips within groups: group number of each clip (N,) -> permutation of the clips (N,).

    Sorts one array of packed keys, random group rank << bits | random clip rank, in place: for 100 million clips an
    argsort by two keys takes several times the time and memory.
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
    """The units that a worker reads for a pass, ordered by the step that first needs them."""
    shard = shard_set.index["shard"].to_numpy()
    row = shard_set.index["row"].to_numpy()
    starts: list[tuple[int, int, Unit]] = []
    for lane in range(rank, len(lanes), world_size):
        clips = lanes[lane]
        shards, groups = shard[clips], row[clips] // ROWS_PER_GROUP
        cuts = np.flatnonzero((np.diff(groups) != 0) | (np.diff(shards) != 0)) + 1
        bounds = [0, *cuts.tolist(), len(clips)] if len(clips) else []
        positions, shard_numbers = clips.tolist(), shards.tolist()
        for start, end in pairwise(bounds):
            unit = Unit(pass_index=pass_index, lane=lane, shard=shard_numbers[start], clips=tuple(positions[start:end]))
            starts.append((start, lane, unit))
    return [unit for _, _, unit in sorted(starts, key=itemgetter(0, 1))]
