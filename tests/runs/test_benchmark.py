from pathlib import Path

import numpy as np
import pytest

from twostream_ray.cli import main
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.build import ModelConfig
from twostream_ray.models.streams import TowerConfig
from twostream_ray.runs.benchmark.folders import FolderDataset, extract
from twostream_ray.runs.benchmark.loader import benchmark_loader
from twostream_ray.runs.benchmark.settings import BenchmarkLoaderConfig, BenchmarkStepConfig
from twostream_ray.runs.benchmark.step import benchmark_step


def test_the_ways_of_today_are_measured_on_the_samples_that_our_loader_gives(
    shard_set: ShardSet, videos: Path, tmp_path: Path
) -> None:
    config = DataConfig(
        shards=shard_set.uri,
        sampling=SamplingConfig(num_snippets=2, min_stride_frames=1, max_stride_frames=3),
        transforms=TransformConfig(crop_px=32),
    )
    clips = extract(shard_set, videos=str(videos), out=tmp_path)
    dataset = FolderDataset(clips, config=config, frames="jpeg")
    ids = shard_set.index["clip_id"].to_pylist()
    places = {clip.clip_id: number for number, clip in enumerate(clips)}
    loader = SnippetLoader(
        shard_set,
        config=config,
        passes=[Pass(split="val", training=True)],
        global_batch=8,
        through_ray=False,
    )
    ((_, batches),) = ((a_pass, list(batches)) for a_pass, batches in loader)
    for batch in batches:
        for rgb, flow, clip in zip(batch.rgb, batch.flow, batch.clips, strict=True):
            theirs = dataset[places[ids[clip]]]
            # Frames of the original and JPEG over JPEG: the same pictures but for their coding.
            assert np.abs(theirs[0].numpy().astype(int) - rgb).mean() < 12
            assert np.abs(theirs[1].numpy().astype(int) - flow).mean() < 2


def test_fewer_clips_than_a_batch_are_refused(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"at least 16 clips are wanted in split 'val' of .*, got 8"):
        benchmark_loader(BenchmarkLoaderConfig(data=DataConfig(shards=shard_set.uri, train_split="val")))


def test_a_training_step_is_timed_with_its_operations() -> None:
    tower = TowerConfig(backbone="vgg_small", width=4)
    model = ModelConfig(architecture="late", spatial=tower, temporal=tower)
    speed = benchmark_step(BenchmarkStepConfig(model=model, size_px=32, batch=2, num_snippets=1, steps=2))
    assert speed.samples_per_second == pytest.approx(2 / speed.seconds)
    assert 0 < speed.teraflops_per_second < 10 and 0.1 < speed.peak_gigabytes < 24


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "everything"]) == 2
    assert "benchmark wants loader, ingest, step or train, got everything" in capsys.readouterr().err
