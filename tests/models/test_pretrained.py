import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from twostream_ray.errors import WeightsError
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.towers import Tower


def small(**settings: object) -> TowerConfig:
    return TowerConfig(backbone="vgg_small", width=4, **settings)


def saved(module: nn.Module, **changes: torch.Tensor) -> dict[str, bytes]:
    """A store of one safetensors file, for reading by its name."""
    return {"file.safetensors": safetensors.torch.save(module.state_dict() | changes)}


def loaded(store: dict[str, bytes], *, in_channels: int = 3, num_classes: int = 5, **settings: object) -> Tower:
    return build_tower(
        small(weights="file.safetensors"),
        in_channels=in_channels,
        num_classes=num_classes,
        read_bytes=store.__getitem__,
        **settings,
    )


def test_a_tower_starts_from_its_weights_file() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    for name, tensor in loaded(saved(source)).state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_a_temporal_tower_starts_from_rgb_filters_averaged_over_colour() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    tower = loaded(saved(source), in_channels=20)
    mean = source.get_parameter("conv1.weight").mean(dim=1)
    for channel in range(20):
        torch.testing.assert_close(tower.get_parameter("conv1.weight")[:, channel], mean)
    assert torch.equal(tower.get_parameter("conv2.weight"), source.get_parameter("conv2.weight"))


def test_a_classifier_of_other_classes_stays_at_random() -> None:
    source = build_tower(small(), in_channels=3, num_classes=7)
    tower = loaded(saved(source), num_classes=5)
    assert tower.get_parameter("fc8.weight").shape == (5, 8)
    assert torch.equal(tower.get_parameter("conv4.weight"), source.get_parameter("conv4.weight"))


def test_a_layer_over_stacked_maps_takes_half_of_its_filters_for_either_tower() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    tower = loaded(saved(source), stacked={"relu3": 8})
    half = source.get_parameter("conv4.weight") / 2
    torch.testing.assert_close(tower.get_parameter("conv4.weight"), torch.cat([half, half], dim=1))


def test_a_tower_that_ends_early_ignores_the_weights_behind() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    tower = loaded(saved(source), upto="relu3")
    assert tower.names[-1] == "relu3"
    assert torch.equal(tower.get_parameter("conv3.weight"), source.get_parameter("conv3.weight"))


def test_imagenet_resnet50_computes_what_torchvisions_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.models.resnet50().eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    cached = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cached)
    ours = build_tower(TowerConfig(backbone="resnet50", weights="imagenet"), in_channels=3, num_classes=1000).eval()
    frames = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames).flatten(1), theirs(frames), rtol=1e-3, atol=1e-4)


def test_vgg16_with_torchvisions_names_computes_what_torchvisions_does() -> None:
    shape = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
    theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(shape)).eval()
    sizes = (32 * 49, 256, 256, 10)
    for index, (inputs, outputs) in zip((0, 3, 6), itertools.pairwise(sizes), strict=True):
        theirs.classifier[index] = nn.Linear(inputs, outputs)
    store = saved(theirs)
    config = TowerConfig(width=4, weights="file.safetensors")
    ours = build_tower(config, in_channels=3, num_classes=10, read_bytes=store.__getitem__).eval()
    frames = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(ours(frames).flatten(1), theirs(frames))
    shorter = build_tower(config, in_channels=3, num_classes=10, upto="relu4_3", read_bytes=store.__getitem__).eval()
    torch.testing.assert_close(shorter(frames), ours(frames, upto="relu4_3"))


def test_weights_that_cannot_be_downloaded_name_the_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on the discard port
    config = TowerConfig(backbone="resnet50", weights="imagenet")
    with pytest.raises(WeightsError, match=r"resnet50-\w+\.pth, which could not be downloaded .* safetensors"):
        build_tower(config, in_channels=3, num_classes=5)


def test_weights_that_do_not_fit_are_refused_by_name_and_shape() -> None:
    tower = build_tower(small(), in_channels=3, num_classes=5)
    with pytest.raises(WeightsError, match=r"conv2\.weight of shape \(9, 4, 3, 3\), vgg_small wants \(8, 4, 3, 3\)"):
        loaded(saved(tower, **{"conv2.weight": torch.zeros(9, 4, 3, 3)}))
    with pytest.raises(WeightsError, match=r"has no conv1\.weight, which vgg_small wants; it has 0\.bias, 0\.weight"):
        loaded(saved(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(WeightsError, match=r"conv1\.weight of shape \(4, 10, 3, 3\), vgg_small wants \(4, 20, 3, 3\)"):
        loaded(saved(build_tower(small(), in_channels=10, num_classes=5)), in_channels=20)


def test_weights_that_are_no_safetensors_or_have_no_reader_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"weights=file\.safetensors cannot be read as safetensors"):
        loaded({"file.safetensors": b"not weights at all"})
    with pytest.raises(WeightsError, match=r"wants a reader of files, got none"):
        build_tower(small(weights="file.safetensors"), in_channels=3, num_classes=5)
