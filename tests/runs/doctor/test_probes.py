from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from noise_shards import noise_shards

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.doctor.probes import WorkerProbe, read_for
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.run import package_for
from twostream_ray.training.settings import TrainingConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("shards")), rows=[16, 16], num_fields=6, video=True)


def probe(shard_set: ShardSet, *, batch: int = 4, width: int = 4, world_size: int = 1, **data: Any) -> WorkerProbe:
    tower = TowerConfig(backbone="vgg_small", width=width)
    config = ExperimentConfig(
        name="n",
        data=DataConfig(
            shards=shard_set.uri,
            sampling=SamplingConfig(num_snippets=2, flow_length=4),
            transforms=TransformConfig(crop_px=16),
            lanes=2,
            **data,
        ),
        model=ModelConfig(spatial=tower, temporal=tower, fusion=FusionConfig(method="conv", layers=("relu3",))),
        training=TrainingConfig(global_batch=batch, epochs=1),
    )
    package = package_for(config, shard_set)
    return WorkerProbe(config, package, shard_set, rank=0, world_size=world_size, needs=(True, True))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[str]:
    yield f"file://{tmp_path}/meeting"
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_reading_has_a_rate_a_first_byte_and_the_bytes_of_a_sample(shard_set: ShardSet) -> None:
    reader, units, tasks, *_ = probe(shard_set).plan()
    assert sum(len(unit.clips) for unit in units) == 32 and tasks >= 2
    rate = read_for(reader, units, 0.05, decodes=False)
    assert rate.samples_per_second > 0 and rate.bytes_per_sample > 100 and rate.first_byte_s > 0
    assert rate.cpu_seconds > 0 and 8 <= rate.clips_per_request <= 16
    # Decoded samples are T x (3 + 2L) x 16 x 16 bytes, beside a few numbers.
    assert read_for(reader, units, 0.05, decodes=True).bytes_per_sample == pytest.approx(2 * 11 * 256, rel=0.1)


@pytest.mark.parametrize("processes", [0, 1])
def test_decoding_is_timed_in_threads_and_in_processes(processes: int, shard_set: ShardSet) -> None:
    rate = probe(shard_set, decode_processes=processes).decode(0.05)
    assert rate is not None and rate.samples_per_second > 0 and rate.cpu_seconds >= 0


def test_where_tasks_decode_the_worker_does_not(shard_set: ShardSet) -> None:
    assert probe(shard_set, decode_at="stream").decode(0.05) is None


def test_steps_are_of_a_worker_s_share_of_the_batch(shard_set: ShardSet) -> None:
    alone, shared = probe(shard_set, batch=64), probe(shard_set, batch=64, world_size=2)
    whole, half = alone.step(0.0), shared.step(0.0)
    assert min(whole.seconds, whole.backward_seconds, half.seconds, half.backward_seconds) > 0
    assert [len(one._batch.labels) for one in (alone, shared)] == [64, 32]
    assert alone.transfer(0.1) == 0.0 and alone.device()[0] == "CPU" and alone.device()[1] > 0


def test_loader_and_steps_are_timed_at_once(shard_set: ShardSet) -> None:
    one = probe(shard_set)
    one.step(0.0)
    assert one.pipeline(0.0) > 0
    # As far as there are samples; and where tasks decode, there is no loader that can do without them.
    assert one.pipeline(60.0) == 0
    of_tasks = probe(shard_set, decode_at="stream")
    of_tasks.step(0.0)
    assert of_tasks.pipeline(0.0) == 0


def test_gradients_are_shared_in_a_process_group(shard_set: ShardSet, group: str) -> None:
    one = probe(shard_set)
    one.step(0.0)
    one.join_process_group(group)
    assert one.all_reduce(2) > 0 and one.step_together(2).seconds > 0
    one.leave_process_group()


def test_a_wider_network_takes_more_of_the_processor(shard_set: ShardSet) -> None:
    # Not by the clock: others may have the cores.
    wide, narrow = (probe(shard_set, width=width, batch=8).step(0.0) for width in (64, 4))
    assert wide.cpu_seconds > 2 * narrow.cpu_seconds
