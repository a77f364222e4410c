import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from noise_shards import noise_shards

from twostream_ray.data.loading.lanes import Pass, Unit
from twostream_ray.data.loading.reading import ShardReader
from twostream_ray.data.loading.rows import rows_of
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig

PASSES = [Pass(split="train", training=True), Pass(split="train")]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("noise")), rows=(5,), num_fields=6)


def reader(shard_set: ShardSet, decode_at: str = "worker") -> ShardReader:
    config = DataConfig(
        shards=shard_set.uri,
        decode_at=decode_at,
        sampling=SamplingConfig(num_snippets=2, flow_length=2, min_stride_frames=1, max_stride_frames=2, test_times=3),
        transforms=TransformConfig(crop_px=16),
    )
    return ShardReader(shard_set, config=config, passes=PASSES, seed=0, want_rgb=False, want_flow=True)


def test_a_training_pass_draws_one_view_and_a_test_pass_all_of_its_times(shard_set: ShardSet) -> None:
    for pass_index, views in ((0, 1), (1, 3)):
        (block,) = reader(shard_set).blocks(Unit(pass_index=pass_index, lane=0, shard=0, clips=(0, 3)))
        rows = list(rows_of(block))
        assert [(row.clip, len(row.views)) for row in rows] == [(0, views), (3, views)]


def test_decoding_in_the_stream_gives_a_block_a_clip(shard_set: ShardSet) -> None:
    blocks = list(reader(shard_set, "stream").blocks(Unit(pass_index=1, lane=0, shard=0, clips=(0, 3))))
    for block in blocks:
        (row,) = rows_of(block)
        assert row.decoded[0] is None and row.decoded[1] is not None
        assert np.frombuffer(row.decoded[1], np.uint8).size == 3 * 2 * 4 * 16 * 16
    assert len(blocks) == 2


def test_what_was_computed_from_the_set_is_not_shipped_to_tasks(shard_set: ShardSet, tmp_path: Path) -> None:
    fresh = replace(shard_set)
    shipped = len(pickle.dumps(reader(fresh)))
    assert fresh.split("train").size == fresh.labels.size == 5
    assert len(pickle.dumps(reader(fresh))) == shipped
