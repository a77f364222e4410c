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


def test_more_cores_than_there_are_and_workers_without_a_core_are_refused(shard_set: ShardSet) -> None:
    data = DataConfig(shards=shard_set.uri)
    for options in ({"cores": 10_000}, {"cores": 1, "workers": 2}):
        with pytest.raises(ConfigError, match="cores must be in"):
            benchmark_loader(BenchmarkLoaderConfig(data=data, **options))
