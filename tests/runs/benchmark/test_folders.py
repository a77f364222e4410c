from pathlib import Path

import numpy as np

from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.runs.benchmark.folders import FolderDataset, extract


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
    index_of = {clip.clip_id: number for number, clip in enumerate(clips)}
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
            theirs = dataset[index_of[ids[clip]]]
            # Frames of the original and JPEG over JPEG: the same pictures but for their coding.
            assert np.abs(theirs[0].numpy().astype(int) - rgb).mean() < 12
            assert np.abs(theirs[1].numpy().astype(int) - flow).mean() < 2
