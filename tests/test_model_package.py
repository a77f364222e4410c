import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import CONVNEXT, fused_model

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import CheckpointError
from twostream_ray.model_package import ModelPackage, load_model, load_weights, read_package, save_model
from twostream_ray.models.build import Network
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.training.checkpoint import load_average, load_state, save_state
from twostream_ray.training.distributed import prepared
from twostream_ray.training.ema import WeightEma
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig

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


def test_a_model_carries_the_size_that_frames_are_resized_to_and_one_of_before_has_none(tmp_path: Path) -> None:
    resized = replace(PACKAGE, transforms=TransformConfig(crop_px=32, short_side_px=40))
    save_model(tmp_path, resized.build(pretrained=False), resized)
    assert load_model(tmp_path)[1].transforms.short_side_px == 40
    values = json.loads((tmp_path / "model.json").read_text())
    del values["transforms"]["short_side_px"]
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert load_model(tmp_path)[1].transforms == TransformConfig(crop_px=32)


def test_a_model_of_before_there_were_video_networks_is_read(tmp_path: Path) -> None:
    save_model(tmp_path, PACKAGE.build(pretrained=False), PACKAGE)
    values = json.loads((tmp_path / "model.json").read_text())
    del values["model"]["clip3d"]
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert load_model(tmp_path)[1] == PACKAGE


def test_a_model_of_timm_where_timm_is_not_installed_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = replace(PACKAGE, model=fused_model(CONVNEXT))
    save_model(tmp_path, package.build(pretrained=False), package)
    assert load_model(tmp_path)[1] == package
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"model\.json: .* wants the package timm, .* pip install") as told:
        load_model(tmp_path)
    assert "damaged" not in str(told.value)


def test_momentum_and_position_come_back(tmp_path: Path) -> None:
    network = PACKAGE.build(pretrained=False)
    optimiser = build_optimiser(network, config=TrainingConfig())
    outputs = network(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 8, 32, 32))
    sum(logits.sum() for logits in outputs.values()).backward()
    optimiser.step()
    save_state(tmp_path, optimiser, {"history": [{"epoch": 0, "train_loss": 1.5}], "step": 0})
    fresh = build_optimiser(network, config=TrainingConfig())
    assert load_state(tmp_path, fresh) == {"history": [{"epoch": 0, "train_loss": 1.5}], "step": 0}
    assert fresh.state.keys() == optimiser.state.keys() != set()
    for parameter, slots in optimiser.state.items():
        torch.testing.assert_close(fresh.state[parameter]["momentum_buffer"], slots["momentum_buffer"], rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_step_after_a_resume_is_the_one_without_it_in_either_memory_format(
    tmp_path: Path, optimiser: Any, channels_last: bool
) -> None:
    config = TrainingConfig(
        optimiser=optimiser, layer_decay=0.8, channels_last=channels_last, precision="float32", compile=False
    )

    def started() -> tuple[Network, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = prepared(PACKAGE.build(pretrained=False), config=config, device=torch.device("cpu"))
        return network, build_optimiser(network, config=config)

    def step(network: Network, update: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        update.zero_grad()
        outputs = network(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 8, 32, 32))
        sum(logits.square().sum() for logits in outputs.values()).backward()
        update.step()

    network, update = started()
    for seed in range(2):
        step(network, update, seed)
    save_model(tmp_path, network, PACKAGE)
    save_state(tmp_path, update, {"history": [], "step": 0})
    resumed, its_update = started()
    load_weights(resumed, tmp_path)
    load_state(tmp_path, its_update)
    for each in ((network, update), (resumed, its_update)):
        step(*each, 2)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), weight, rtol=0, atol=0, msg=name)


def test_the_state_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    network = PACKAGE.build(pretrained=False)
    sgd, adamw = (build_optimiser(network, config=TrainingConfig(optimiser=one)) for one in ("sgd", "adamw"))
    outputs = network(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 8, 32, 32))
    sum(logits.sum() for logits in outputs.values()).backward()
    for optimiser, other in ((sgd, adamw), (adamw, sgd)):
        optimiser.step()
        save_state(tmp_path, optimiser, {"history": [], "step": 0})
        with pytest.raises(CheckpointError, match=rf"{type(other).__name__} keeps .*: delete this checkpoint"):
            load_state(tmp_path, other)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    network = PACKAGE.build(pretrained=False)
    save_model(tmp_path, network, PACKAGE)
    save_state(tmp_path, build_optimiser(network, config=TrainingConfig()), {"history": [], "step": 0})
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
    average = WeightEma(network, decay=0.5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1.0)
    average.update(100)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with average.in_place():
        save_model(tmp_path, network, PACKAGE)
    save_state(tmp_path, build_optimiser(network, config=TrainingConfig()), {"history": [], "step": 0}, network=network)
    served, _ = load_model(tmp_path)
    resumed = PACKAGE.build(pretrained=False)
    load_weights(resumed, tmp_path, averaged=True)
    resumed_average = WeightEma(resumed, decay=0.5)
    load_average(resumed_average, tmp_path)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(served.get_parameter(name), weight - 0.5)
        torch.testing.assert_close(resumed.get_parameter(name), own[name], rtol=0, atol=0)
    with average.in_place(), resumed_average.in_place():
        for name, weight in network.named_parameters():
            torch.testing.assert_close(resumed.get_parameter(name), weight, rtol=0, atol=0)


def changed(directory: Path, key: str, value: object) -> Path:
    """A model's folder whose model.json has another value at a dotted key, or lacks the key."""
    values = json.loads((directory / "model.json").read_text())
    *path, last = key.split(".")
    part = values
    for name in path:
        part = part[name]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    (directory / "model.json").write_text(json.dumps(values))
    return directory


GONE = object()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A stored model."""
    torch.manual_seed(3)
    save_model(tmp_path, PACKAGE.build(pretrained=False), PACKAGE)
    return tmp_path


KEYS_OF_THE_FIRST_VERSION = {
    "format": (),
    "classes": (),
    "lineage": (),
    "contract": ("algorithm", "bound_px", "coding", "jpeg_quality", "short_side_px"),
    "sampling": (
        *("flow_length", "flow_mean_subtraction", "flow_stack", "max_stride_frames", "min_stride_frames"),
        *("num_snippets", "test_times"),
    ),
    "transforms": ("crop_px", "flip", "size_jitter"),
    "model": (
        *("architecture", "freeze_below_fusion", "head_classes", "keep_temporal_tower", "num_classes", "streams"),
        *("spatial", "temporal", "fusion", "st_resnet", "stfn"),
    ),
    "model.spatial": ("backbone", "dropout", "frozen_through", "weights", "width"),
    "model.temporal": ("backbone", "dropout", "frozen_through", "weights", "width"),
    "model.fusion": ("initialisation", "layers", "method", "pool_snippets", "pool_stride", "temporal"),
    "model.st_resnet": ("injection", "pools_time"),
    "model.stfn": ("branch_maps", "num_blocks", "residual_scale"),
}
"""What model.json had from the first: files in people's registries lack whatever came later."""


def as_the_first_version_wrote_it(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        path = f"{at}.{name}".strip(".")
        if not at or name in KEYS_OF_THE_FIRST_VERSION[at]:
            found[name] = as_the_first_version_wrote_it(value, path) if KEYS_OF_THE_FIRST_VERSION.get(path) else value
    return found


def test_a_model_of_the_first_version_is_read_as_it_was(stored: Path) -> None:
    values = json.loads((stored / "model.json").read_text())
    older = as_the_first_version_wrote_it(values)
    assert older["model"].keys() < values["model"].keys()
    assert older["model"]["spatial"].keys() < values["model"]["spatial"].keys()
    (stored / "model.json").write_text(json.dumps(older))
    assert read_package(stored) == PACKAGE


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sampling.flow_length", 10**8, "flow_length must be at most 1,000, got 100000000"),
        ("transforms.crop_px", 10**6, "crop_px must be at most 4,096, got 1000000"),
        ("model.spatial.width", 10**6, "width must be at most 4,096"),
        ("model.spatial.width", 4096, "fusion wants as many maps from both towers"),
        ("sampling.flow_length", 1000, "holds the weights of another network"),
        ("contract.bound_px", float("inf"), "Infinity is not a number"),
        ("contract.bound_px", float("nan"), "NaN is not a number"),
        ("contract.bound_px", "15", "bound_px must be a number, got the text '15'"),
        ("contract.bound_px", True, "bound_px"),
        ("contract.bound_px", 10**400, "bound_px is too large a number"),
        ("contract.algorithm", "guess", "algorithm"),
        ("contract.unknown", 1, "unknown setting 'contract.unknown'"),
        ("contract", None, "its contract wants type 'object', has None"),
        ("contract", [], "its contract wants type 'object'"),
        ("contract.bound_px", GONE, "contract lacks bound_px"),
        ("sampling.flow_length", GONE, "sampling lacks flow_length"),
        ("model.temporal.backbone", GONE, "model.temporal lacks backbone"),
        ("classes", GONE, "lacks classes"),
        ("lineage", GONE, "lacks lineage"),
        ("extra", 1, "unknown key 'extra'"),
        ("classes", [], "its classes wants at least 1"),
        ("classes", ["left"], "holds the weights of another network"),
        ("classes", ["left", "right", "up"], "holds the weights of another network"),
        ("classes", ["left", 2], "its classes.1 wants type 'string', has 2"),
        ("classes", ["left", ""], "its classes.1 wants at least 1 characters"),
        ("classes", ["left", "r" * 2000], "its classes.1 wants at most 1000 characters"),
        ("classes", ["left", "left"], "its classes has a value twice"),
        ("contract.bound_px", 1e-300, "bound_px must be at least 0.001"),
        ("classes", "left", "its classes wants type 'array'"),
        ("model.num_classes", 3, "its network has 3 outputs, there are 2 classes"),
        ("model.head_classes", [1, 2], "its network has 3 outputs, there are 2 classes"),
        ("model.architecture", "late", "holds the weights of another network"),
        ("model", {"class_path": "antigravity.fly"}, "unknown setting 'model.class_path'"),
        ("model.spatial", "antigravity.fly", "model.spatial is a block of settings"),
        ("format", "1", "its format wants type 'integer'"),
        ("format", 10**30, "has format 1000"),
    ],
)
def test_a_package_that_says_what_cannot_be_is_one_line(stored: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError) as met:
        load_model(changed(stored, key, value))
    said = str(met.value)
    assert message in said and str(stored) in said and "\n" not in said and len(said) < 600, said


def test_sizes_are_held_against_each_other_before_they_take_memory(stored: Path) -> None:
    for key in ("model.spatial.width", "model.temporal.width"):
        changed(stored, key, 4096)
    with pytest.raises(CheckpointError, match="holds the weights of another network"):
        load_model(stored)
    with pytest.raises(CheckpointError, match=r"the samples of a video have 369,098,752,000 values, the limit is"):
        load_model(changed(changed(stored, "transforms.crop_px", 4096), "sampling.test_times", 1000))


def test_crops_that_a_network_cannot_take_are_refused_when_it_is_loaded(tmp_path: Path) -> None:
    tower = TowerConfig(backbone="vgg16", width=2)
    package = replace(PACKAGE, model=ModelConfig(architecture="late", spatial=tower, temporal=tower))
    package = replace(package, transforms=TransformConfig(crop_px=224))
    save_model(tmp_path, package.build(pretrained=False), package)
    load_model(tmp_path)
    with pytest.raises(CheckpointError, match="crops of 16 px do not go through its network"):
        load_model(changed(tmp_path, "transforms.crop_px", 16))


def test_weights_that_are_no_numbers_are_refused(stored: Path) -> None:
    tensors = load_file(stored / "model.safetensors")
    name = sorted(tensors)[-1]
    for value in (float("nan"), float("inf"), float("-inf")):
        spoilt = {key: tensor.clone() for key, tensor in tensors.items()}
        spoilt[name].flatten()[0] = value
        save_file(spoilt, stored / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
            load_model(stored)


def lie(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file, and leave the weights alone."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


NAME = "spatial.conv1.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[NAME].update(shape=[2**40, 2**40]),
        lambda header: header[NAME].update(shape=[2**31]),
        lambda header: header[NAME].update(dtype="F64"),
        lambda header: header[NAME].update(dtype="I32"),
        lambda header: header[NAME].update(data_offsets=[0, 2**60]),
        lambda header: header[NAME].update(data_offsets=[8, 0]),
        lambda header: header[NAME].update(shape=list(reversed(header[NAME]["shape"]))),
        lambda header: header.pop(NAME),
        lambda header: header.update({"another": header.pop(NAME)}),
        lambda header: header.clear(),
    ],
)
def test_a_header_of_weights_that_lies_is_refused(stored: Path, change: Callable[[dict[str, Any]], object]) -> None:
    assert NAME in load_file(stored / "model.safetensors")
    lie(stored / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as met:
        load_model(stored)
    assert "\n" not in str(met.value)


def test_only_regular_files_are_a_model(stored: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        kept = (stored / name).read_bytes()
        for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
            path = stored / name
            path.unlink()
            make(path)
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                load_model(stored)
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(kept)
    load_model(stored)
