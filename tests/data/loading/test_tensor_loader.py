from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_shards import noise_shards

from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.loading.tensor_loader import TensorBatch, TensorLoader
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError, ShardError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("tensors")), rows=(5, 9), num_fields=12, video=True)


def config_of(shard_set: ShardSet, **options: object) -> DataConfig:
    return DataConfig(
        shards=shard_set.uri,
        sampling=SamplingConfig(num_snippets=2, flow_length=4, min_stride_frames=1, max_stride_frames=3, test_times=2),
        transforms=TransformConfig(crop_px=32),
        **options,
    )


def loader_of(shard_set: ShardSet, **options: object) -> TensorLoader:
    given = {"config": config_of(shard_set), "split": "train", "batch": 4, "device": CPU, "seed": 7, "training": True}
    return TensorLoader(shard_set, **given | options)


def by_clip(batches: Iterator[TensorBatch]) -> dict[str, list[tuple[torch.Tensor, torch.Tensor, int]]]:
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor, int]]] = {}
    for batch in batches:
        assert batch.rgb is not None and batch.flow is not None
        for rgb, flow, label, clip in zip(batch.rgb, batch.flow, batch.labels, batch.clip_ids, strict=True):
            found.setdefault(clip, []).append((rgb, flow, int(label)))
    return found


@pytest.mark.parametrize(("training", "batch", "epoch"), [(True, 4, 0), (True, 6, 3), (False, 5, 0)])
def test_the_samples_are_those_that_distributed_training_sees(
    shard_set: ShardSet, training: bool, batch: int, epoch: int
) -> None:
    """The second of two workers included, other lanes and another batch: the draw is of (seed, epoch, clip id)."""
    loader = loader_of(shard_set, training=training, batch=batch)
    loader.set_epoch(epoch)
    found = by_clip(iter(loader))
    wanted: dict[str, list[tuple[torch.Tensor, torch.Tensor, int]]] = {}
    for rank in range(2):
        worker = SnippetLoader(
            shard_set,
            config=config_of(shard_set),
            passes=[Pass(split="train", epoch=epoch, training=training)],
            global_batch=8,
            seed=7,
            rank=rank,
            world_size=2,
            through_ray=False,
        )
        for _, batches in worker:
            for one in batches:
                assert one.rgb is not None and one.flow is not None
                for number in np.flatnonzero(one.weights):
                    clip = shard_set.index["clip_id"][int(one.clips[number])].as_py()
                    rgb = normalise_rgb(torch.from_numpy(one.rgb[number].copy()))
                    flow = normalise_flow(torch.from_numpy(one.flow[number].copy()))
                    wanted.setdefault(clip, []).append((rgb, flow, int(one.labels[number])))
    assert found.keys() == wanted.keys() and len(found) == 14
    for clip, samples in found.items():
        assert len(samples) == (1 if training else 2)
        for (rgb, flow, label), (wanted_rgb, wanted_flow, wanted_label) in zip(samples, wanted[clip], strict=True):
            assert torch.equal(rgb, wanted_rgb) and torch.equal(flow, wanted_flow) and label == wanted_label


def test_tensors_are_normalised_floats_of_the_shapes_that_networks_take(shard_set: ShardSet) -> None:
    loader = loader_of(shard_set)
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    first = batches[0]
    assert first.rgb is not None and first.flow is not None
    assert first.rgb.shape == (4, 2, 3, 32, 32) and first.flow.shape == (4, 2, 8, 32, 32)
    assert first.rgb.dtype == first.flow.dtype == torch.float32 and first.labels.dtype == torch.int64
    assert -2.2 < first.rgb.min() < 0 < first.rgb.max() < 2.7
    assert first.flow.abs().max() <= 128 / 57.6
    assert Counter(len(batch.clip_ids) for batch in batches) == {4: 3, 2: 1}
    assert loader.classes == shard_set.classes


def test_every_iteration_is_the_next_epoch_and_one_can_be_drawn_again(shard_set: ShardSet) -> None:
    loader = loader_of(shard_set)
    first, second = by_clip(iter(loader)), by_clip(iter(loader))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[clip][0][0], second[clip][0][0]) for clip in first)
    loader.set_epoch(0)
    again = by_clip(iter(loader))
    assert list(again) == list(first) and all(torch.equal(again[clip][0][0], first[clip][0][0]) for clip in first)


def test_a_stream_that_is_not_wanted_is_not_there(shard_set: ShardSet) -> None:
    assert all(batch.flow is None and batch.rgb is not None for batch in loader_of(shard_set, want_flow=False))
    assert all(batch.rgb is None and batch.flow is not None for batch in loader_of(shard_set, want_rgb=False))


@pytest.mark.parametrize("batch", [1, 3, 14, 100])
def test_any_batch_gives_each_clip_once(shard_set: ShardSet, batch: int) -> None:
    loader = loader_of(shard_set, batch=batch)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert sorted(clip for one in batches for clip in one.clip_ids) == sorted(shard_set.index["clip_id"].to_pylist())


def test_an_epoch_that_is_left_early_ends_what_decodes_for_it(shard_set: ShardSet, monkeypatch: object) -> None:
    import threading

    before = threading.active_count()
    for _ in loader_of(shard_set, batch=1):
        break
    assert threading.active_count() == before


def test_what_cannot_be_loaded_is_refused_at_once(shard_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no split 'dev', it has train"):
        loader_of(shard_set, split="dev")
    with pytest.raises(ConfigError, match="batch must be at least 1 clip, got 0"):
        loader_of(shard_set, batch=0)
    with pytest.raises(ConfigError, match="at least one of want_rgb and want_flow"):
        loader_of(shard_set, want_rgb=False, want_flow=False)
    with pytest.raises(ConfigError, match="an epoch must be at least 0, got -1"):
        loader_of(shard_set).set_epoch(-1)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU: use cpu"):
            loader_of(shard_set, device=torch.device("cuda"))
