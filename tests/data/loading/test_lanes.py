import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostream_ray.data.loading.lanes import Pass, lane_lengths, plan_lanes, plan_units
from twostream_ray.data.shards.shards import ShardSet


@given(
    lanes=st.integers(1, 12),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_units_cover_each_row_once_over_all_workers(
    shard_set: ShardSet, lanes: int, world_size: int, epoch: int
) -> None:
    planned = plan_lanes(shard_set, Pass(split="train", epoch=epoch, training=True), lanes=lanes, seed=1)
    assert max(map(len, planned)) - min(map(len, planned)) <= 1
    assert list(map(len, planned)) == lane_lengths(len(shard_set.split("train")), lanes=lanes)
    clips = [
        clip
        for rank in range(world_size)
        for unit in plan_units(shard_set, planned, pass_index=0, rank=rank, world_size=world_size)
        for clip in unit.clips
    ]
    assert sorted(clips) == sorted(shard_set.split("train").tolist())


@given(lanes=st.integers(1, 12), skipped=st.integers(0, 60))
def test_a_resumed_pass_has_the_rest_of_every_lane(shard_set: ShardSet, lanes: int, skipped: int) -> None:
    a_pass = Pass(split="train", training=True)
    whole = plan_lanes(shard_set, a_pass, lanes=lanes, seed=1)
    rest = plan_lanes(shard_set, a_pass, lanes=lanes, seed=1, skipped=skipped)
    assert [lane.tolist() for lane in rest] == [lane[skipped:].tolist() for lane in whole]
    assert list(map(len, rest)) == lane_lengths(len(shard_set.split("train")), lanes=lanes, skipped=skipped)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_pass_s_order_is_that_of_drawn_ranks_of_groups_and_of_clips_within_them(in_order: bool, chunks: int) -> None:
    """The order that runs were begun with: a resumed one must find its place in it."""
    rng = np.random.default_rng(4)
    stored = rng.permutation(4000)[:900]
    stored = np.sort(stored) if in_order else stored
    index = pa.table(
        {
            "splits": pa.array([["train"], ["train", "val"], ["val", "train", "train"]] * 300),
            "shard": pa.array(stored // 128, pa.int32()),
            "row": pa.array(stored % 128, pa.int32()),
        }
    )
    index = pa.concat_tables([index.slice(start, 900 // chunks) for start in range(0, 900, 900 // chunks)])
    blank = dict.fromkeys(("uri", "hash", "contract"), "")
    empty = dict.fromkeys(("classes", "head_classes", "shard_names", "shard_sha256", "shard_bytes", "quarantined"), ())
    shard_set = ShardSet(**blank, **empty, index=index)
    draws = np.random.Generator(np.random.Philox(key=[7, 3]))
    groups, group_of = np.unique(stored // 128 << 32 | stored % 128 // 16, return_inverse=True)
    wanted = np.lexsort((draws.permutation(900), draws.permutation(len(groups))[group_of]))
    lanes = plan_lanes(shard_set, Pass(split="train", epoch=3, training=True), lanes=7, seed=7)
    assert np.concatenate(lanes).tolist() == wanted.tolist()
    plain = plan_lanes(shard_set, Pass(split="train"), lanes=7, seed=7)
    assert np.concatenate(plain).tolist() == np.argsort(stored).tolist()
    assert shard_set.split("val").tolist() == [clip for clip in range(900) if clip % 3]


@pytest.mark.soak
def test_planning_ten_million_clips_takes_seconds_and_about_a_hundred_bytes_a_clip() -> None:
    from large_index import planned

    taken = planned(10_000_000)
    seconds = {name: value for name, value in taken.items() if name.endswith(" s")}
    print(f"\nPLANNING {taken}", flush=True)  # noqa: T201  (recorded in docs)
    assert sum(seconds.values()) < 60 and taken["peak GB"] < 2
