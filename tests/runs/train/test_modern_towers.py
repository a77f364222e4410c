"""The journey of a network of timm, and of one over video: trained, resumed, registered, used on raw video."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from small_networks import CLIP3D

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.inference import Classifier
from twostream_ray.models.settings import FusionConfig, ModelConfig, TemporalFusion, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.predict import pull
from twostream_ray.runs.score.publish import publish_run
from twostream_ray.runs.score.settings import PullConfig
from twostream_ray.runs.train.run import train
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import TrainingConfig


def fused(backbone: str, layer: str, temporal: TemporalFusion) -> ModelConfig:
    tower = TowerConfig(backbone=backbone, dropout=0.0, drop_path=0.2)
    fusion = FusionConfig(layers=(layer,), temporal=temporal, initialisation="identity")
    return ModelConfig(spatial=tower, temporal=tower, fusion=fusion)


MODELS = {
    "convnext": fused("timm:test_convnext", "stages_1", "conv3d"),
    "vit": fused("timm:test_vit", "blocks_3", "pool3d"),
    "clip3d": CLIP3D,
}


def experiment(kind: str, shard_set: ShardSet, folder: Path, *, name: str, epochs: int) -> ExperimentConfig:
    return ExperimentConfig(
        name=name,
        data=DataConfig(
            shards=shard_set.uri,
            sampling=SamplingConfig(
                num_snippets=2, min_stride_frames=1, max_stride_frames=2, test_times=2, flow_length=4
            ),
            transforms=TransformConfig(crop_px=96),
        ),
        model=MODELS[kind],
        training=TrainingConfig(
            epochs=epochs,
            global_batch=16,
            learning_rate=1e-3,
            schedule="constant",
            optimiser="adamw",
            weight_decay=0.05,
            layer_decay=0.8,
        ),
        workers=WorkersConfig(num_workers=1),
        storage=str(folder / "runs"),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", model_name=f"modern-{kind}"),
        seed=5,
    )


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(checkpoint) / "model.safetensors")


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
def test_a_modern_network_is_trained_resumed_bit_for_bit_registered_and_used_on_raw_video(
    kind: str, shard_set: ShardSet, videos: Path, tmp_path: Path
) -> None:
    whole = train(experiment(kind, shard_set, tmp_path, name="whole", epochs=2))
    train(experiment(kind, shard_set, tmp_path, name="resumed", epochs=1))
    config = experiment(kind, shard_set, tmp_path, name="resumed", epochs=2)
    resumed = train(config)
    assert [epoch["train_loss"] for epoch in resumed.history] == [epoch["train_loss"] for epoch in whole.history]
    expected, got = weights(whole.checkpoint), weights(resumed.checkpoint)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected), "bit for bit"

    published = publish_run(config, resumed)
    evaluation = published.evaluation
    assert evaluation.report.coverage == "20 of 20 clips"
    champion = PullConfig(
        out=str(tmp_path / "champion"), model=f"models:/modern-{kind}@champion", tracking=config.tracking
    )
    classifier = Classifier.load(pull(champion))
    chosen = range(0, 20, 5)
    predictions = classifier.predict([videos / evaluation.clip_ids[number] for number in chosen])
    for number, prediction in zip(chosen, predictions, strict=True):
        np.testing.assert_allclose(prediction.heads[0].probabilities, evaluation.probabilities[number], atol=1e-5)
