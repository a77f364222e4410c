from dataclasses import replace

import pytest
from healthy_node import HEALTHY
from noise_shards import noise_shards

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.doctor.memory import PROCESS_BYTES, memory_check
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.training.settings import TrainingConfig

TOWER = TowerConfig(backbone="vgg_small", width=8)
CPU = replace(HEALTHY, driver=None, gpus=(), gpu_bytes=None, ray_gpus=0, accelerator=None)


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("shards")), rows=[4], num_fields=2)


def config(*, batch: int, **training: object) -> ExperimentConfig:
    return ExperimentConfig(
        name="n",
        data=DataConfig(
            shards="s",
            sampling=SamplingConfig(num_snippets=2, flow_length=4),
            transforms=TransformConfig(crop_px=32),
            lanes=2,
        ),
        model=ModelConfig(spatial=TOWER, temporal=TOWER, fusion=FusionConfig(method="conv", layers=("relu3",))),
        training=TrainingConfig(global_batch=batch, **training),
    )


@pytest.mark.slow
def test_a_step_that_is_larger_than_its_gpu_is_wrong_before_one_is_taken(shard_set: ShardSet) -> None:
    fits = memory_check(config(batch=32), shard_set, [HEALTHY])
    assert fits.status == "ok" and "a step of 16 clips per worker" in fits.found
    small = replace(HEALTHY, gpu_bytes=1 << 30)
    wrong = memory_check(config(batch=32), shard_set, [small])
    assert wrong.status == "wrong" and "micro_batches" in wrong.way_out and "1.0 GiB" in wrong.found


@pytest.mark.slow
def test_workers_of_one_cpu_node_take_its_memory_together(shard_set: ShardSet) -> None:
    together = memory_check(config(batch=32), shard_set, [CPU])
    assert "for 2 workers" in together.found and together.status == "ok"
    tight = replace(CPU, memory_bytes=PROCESS_BYTES)
    assert memory_check(config(batch=32), shard_set, [tight]).status == "wrong"


def test_settings_that_make_no_network_are_wrong_in_words(shard_set: ShardSet) -> None:
    # Its towers have batch normalisation.
    check = memory_check(config(batch=4, activation_checkpointing=True), shard_set, [CPU])
    assert check.status == "wrong" and "activation checkpointing" in check.found
