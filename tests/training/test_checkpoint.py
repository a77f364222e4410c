import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import CheckpointError
from twostream_ray.models.fusion import FusionConfig
from twostream_ray.models.networks import ModelConfig
from twostream_ray.models.streams import TowerConfig
from twostream_ray.training.average import WeightAverage
from twostream_ray.training.checkpoint import (
    ModelPackage,
    load_average,
    load_model,
    load_state,
    load_weights,
    read_package,
    save_model,
    save_state,
)
from twostream_ray.training.recipe import TrainingConfig, build_optimiser

TOWER = TowerConfig(backbone="vgg_small", width=4)
PACKAGE = ModelPackage(
    model=ModelConfig(
        spatial=TOWER, temporal=TOWER, fusion=FusionConfig(method="conv", layers=("relu2", "relu3"), temporal="pool2d")
    ),
    classes=("left", "right"),
    contract=FlowContract(short_side_px=48, bound_px=15.0),
    sampling=SamplingConfig(flow_length=4, num_snippets=2),
    transforms=TransformConfig(crop_px=32),
    lineage={"git_commit": "abc"},
)


def test_a_stored_model_comes_back_with_its_settings_and_scores(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = PACKAGE.build(pretrained=False).eval()
    save_model(tmp_path, network, PACKAGE)
    loaded, package = load_model(tmp_path)
    assert package == PACKAGE and not loaded.training
    rgb, flow = torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 8, 32, 32)
    torch.testing.assert_close(loaded.scores(loaded(rgb, flow)), network.scores(network(rgb, flow)), rtol=0, atol=0)


def test_momentum_and_position_come_back(tmp_path: Path) -> None:
    network = PACKAGE.build(pretrained=False)
    optimiser = build_optimiser(network, config=TrainingConfig())
    outputs = network(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 8, 32, 32))
    sum(logits.sum() for logits in outputs.values()).backward()  # type: ignore[union-attr]
    optimiser.step()
    save_state(tmp_path, optimiser, {"history": [{"epoch": 0, "train_loss": 1.5}]})
    fresh = build_optimiser(network, config=TrainingConfig())
    assert load_state(tmp_path, fresh) == {"history": [{"epoch": 0, "train_loss": 1.5}]}
    assert fresh.state.keys() == optimiser.state.keys() != set()
    for parameter, slots in optimiser.state.items():
        torch.testing.assert_close(fresh.state[parameter]["momentum_buffer"], slots["momentum_buffer"], rtol=0, atol=0)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    network = PACKAGE.build(pretrained=False)
    save_model(tmp_path, network, PACKAGE)
    save_state(tmp_path, build_optimiser(network, config=TrainingConfig()), {"history": []})
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_weights_of_another_network_are_refused_with_a_reason(tmp_path: Path) -> None:
    save_model(tmp_path, PACKAGE.build(pretrained=False), PACKAGE)
    other = replace(PACKAGE, classes=("a", "b", "c")).build(pretrained=False)
    with pytest.raises(CheckpointError, match="holds the weights of another network"):
        load_weights(other, tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    save_model(tmp_path, PACKAGE.build(pretrained=False), PACKAGE)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path)


def test_another_version_of_the_format_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, PACKAGE.build(pretrained=False), PACKAGE)
    values = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version reads format 1"):
        read_package(tmp_path)


def test_averaged_weights_are_the_model_and_training_goes_on_with_its_own(tmp_path: Path) -> None:
    network = PACKAGE.build(pretrained=False)
    average = WeightAverage(network, decay=0.5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1.0)
    average.update(100)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with average.in_place():
        save_model(tmp_path, network, PACKAGE)
    save_state(tmp_path, build_optimiser(network, config=TrainingConfig()), {"history": []}, network=network)
    served, _ = load_model(tmp_path)
    resumed = PACKAGE.build(pretrained=False)
    load_weights(resumed, tmp_path, averaged=True)
    resumed_average = WeightAverage(resumed, decay=0.5)
    load_average(resumed_average, tmp_path)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(served.get_parameter(name), weight - 0.5)
        torch.testing.assert_close(resumed.get_parameter(name), own[name], rtol=0, atol=0)
    with average.in_place(), resumed_average.in_place():
        for name, weight in network.named_parameters():
            torch.testing.assert_close(resumed.get_parameter(name), weight, rtol=0, atol=0)
