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
