from dataclasses import replace
from pathlib import Path

import pytest
from noise_shards import noise_shards

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.doctor.measurement import measure
from twostream_ray.runs.doctor.stages import predict
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.training.settings import TrainingConfig

TOWER = TowerConfig(backbone="vgg_small", width=4)


def settings(shards: str, *, width: int = 4, batch: int = 4) -> ExperimentConfig:
    tower = replace(TOWER, width=width)
    return ExperimentConfig(
        name="n",
        data=DataConfig(
            shards=shards,
            sampling=SamplingConfig(num_snippets=2, flow_length=4),
            transforms=TransformConfig(crop_px=16),
            lanes=2,
        ),
        model=ModelConfig(spatial=tower, temporal=tower, fusion=FusionConfig(method="conv", layers=("relu3",))),
        training=TrainingConfig(global_batch=batch, epochs=1),
        workers=WorkersConfig(num_workers=2),
    )


@pytest.mark.soak
def test_every_part_of_a_training_is_measured_by_its_own_workers(cluster: None, tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=[16, 16], num_fields=6, video=True)
    said: list[str] = []
    measured = measure(settings(str(tmp_path)), shard_set, seconds=0.1, report_progress=said.append)
    assert said == ["reading", "decoding", "steps", "all-reduce"]
    rates = (measured.reading.samples_per_second, measured.decoding.samples_per_second, measured.matrix_rate)
    assert measured.workers == 2 and min(rates) > 0 and measured.step.seconds > 0
    assert measured.together is not None and measured.all_reduce_s > 0
    prediction = predict(measured, clips=32, validation_views=0, price=None)
    assert prediction.bottleneck in {stage.name for stage in prediction.stages} and prediction.samples_per_second > 0
