import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pages import ROOT
from small_networks import CONFIGS, fused_model, late, residual
from torch import nn

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.errors import ConfigError
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.score import exported_network
from twostream_ray.runs.score.exported_network import (
    Format,
    Frames,
    clips_of,
    describe_file,
    largest_difference,
    open_file,
    views_of,
    write_file,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def package_of(model: ModelConfig, *, crop_px: int = 32) -> ModelPackage:
    return ModelPackage(
        model=model,
        classes=("a", "b", "c", "d", "e"),
        contract=FlowContract(short_side_px=48 if crop_px < 48 else 256),
        sampling=SamplingConfig(num_snippets=3, test_times=2, flow_length=2),
        transforms=TransformConfig(crop_px=crop_px),
    )


def network_of(package: ModelPackage) -> Network:
    """With biases and moments as training leaves them, and logits of several units."""
    torch.manual_seed(0)
    network = package.build(pretrained=False).eval()
    for module in network.modules():
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
    return network


def random_views(network: Network, package: ModelPackage) -> Iterator[Frames]:
    generator = np.random.default_rng(0)
    for count in (1, 3, 5):
        yield tuple(
            generator.integers(0, 256, (count, *shape), np.uint8)
            for shape in exported_network._shapes(network, package).values()
        )


def written(path: Path, network: Network, package: ModelPackage, *, kind: Format) -> Path:
    settings = describe_file(network, package, towers=["spatial"], weights_sha256="0a" * 32)
    write_file(path, network, package, kind=kind, settings=settings)
    return path


@pytest.mark.slow
def test_an_onnx_file_says_what_it_takes_and_nothing_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    package = package_of(fused_model(temporal="conv3d"))
    path = written(tmp_path / "model.onnx", network_of(package), package, kind="onnx")
    model = onnx.load(str(path))
    found = {entry.key: entry.value for entry in model.metadata_props}
    about = json.loads(found["twostream"])
    assert about["classes"] == list("abcde") and about["averages"] == "logits" and about["contract"]["bound_px"] == 20
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert {given["name"]: given["shape"] for given in about["inputs"]} == {
        name: shapes[name] for name in ("rgb", "flow")
    }
    assert shapes["rgb"] == ["views", 3, 3, 32, 32] and shapes["logits"][0] == shapes["scores"][0] == "views"
    content = path.read_bytes()
    for place in (ROOT, Path(torch.__file__).parent, tmp_path):
        assert str(place).encode() not in content
    views = random_views(network_of(package), package)
    difference, count = largest_difference(open_file(path, kind="onnx"), network_of(package), views)
    assert difference < 1e-5 and count == 9


@pytest.mark.slow
def test_another_networks_answers_are_far_from_these_and_broken_ones_infinitely(tmp_path: Path) -> None:
    package = package_of(late(streams="temporal"))
    network, other = network_of(package), network_of(package)
    run = open_file(written(tmp_path / "model.pt2", network, package, kind="torch"), kind="torch")
    assert largest_difference(run, network, random_views(network, package))[0] < 1e-6
    with torch.no_grad():
        other.get_parameter("temporal.fc8.bias").add_(torch.tensor([1e-2, 0, 0, 0, 0]))
    assert largest_difference(run, other, random_views(network, package))[0] > 1e-4
    with torch.no_grad():
        other.get_parameter("temporal.fc8.bias")[0] = float("nan")
    assert largest_difference(run, other, random_views(network, package))[0] == float("inf")


@pytest.mark.parametrize(("test_times", "counts"), [(1, [1, 3]), (2, [1, 1]), (6, [1, 3, 2])])
def test_views_are_compared_alone_and_several_at_a_time(test_times: int, counts: list[int]) -> None:
    package = package_of(late())
    package = replace(package, sampling=replace(package.sampling, test_times=test_times))
    (clip,) = clips_of([], package.contract)
    views = list(views_of(clip, network_of(package), package))
    assert [len(frames[0]) for frames in views] == counts
    assert [frames[1].shape[1:] for frames in views] == len(counts) * [(3, 4, 32, 32)]


def test_a_network_that_an_onnx_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    package = package_of(late())
    with torch.device("meta"):
        network = package.build(pretrained=False).eval()
        network.large = nn.Linear(1 << 15, 1 << 14)
    with pytest.raises(ConfigError, match=r"an ONNX file holds at most 2,080,374,784 bytes .* --format torch"):
        write_file(tmp_path / "model.onnx", network, package, kind="onnx", settings="{}")


FULL_SIZE = [
    late(TowerConfig()),
    fused_model(TowerConfig(), temporal="conv3d"),
    residual("st_resnet", TowerConfig(backbone="resnet50")),
]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_every_architecture_answers_the_same_in_either_format(number: int, kind: Format, tmp_path: Path) -> None:
    package = package_of(CONFIGS[number])
    network = network_of(package)
    run = open_file(written(tmp_path / "model", network, package, kind=kind), kind=kind)
    assert largest_difference(run, network, random_views(network, package))[0] <= 1e-4


@pytest.mark.soak
@pytest.mark.real
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("model", FULL_SIZE, ids=["late", "fused", "st_resnet"])
def test_full_networks_answer_the_same_on_real_clips(
    model: ModelConfig, kind: Format, tmp_path: Path, real: Path
) -> None:
    package = package_of(model, crop_px=224)
    network = network_of(package)
    run = open_file(written(tmp_path / "model", network, package, kind=kind), kind=kind)
    found = []
    for path in sorted((real / "ucf101").glob("*/*.avi"))[:3]:
        clip = prepare_in_subprocess(path.read_bytes(), package.contract, name=path.name)
        found.append(largest_difference(run, network, views_of(clip, network, package))[0])
    assert max(found) <= 1e-4
