"""The loader's benchmark; those of ingest and training are run by hand, for they measure a whole machine."""

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError
from twostream_ray.runs.benchmark.loader import benchmark_loader
from twostream_ray.runs.benchmark.settings import BenchmarkLoaderConfig


def test_fewer_clips_than_a_batch_are_refused(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"at least 16 clips are wanted in split 'val' of .*, got 8"):
        benchmark_loader(BenchmarkLoaderConfig(data=DataConfig(shards=shard_set.uri, train_split="val")))
