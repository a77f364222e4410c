import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.models.streams import FullyConnected, Tower, TowerConfig, build_tower, counterpart, layer_channels


def tower_on_paper(backbone: str, *, in_channels: int = 3, num_classes: int = 101) -> Tower:
    """A full-size tower without memory behind its parameters."""
    with torch.device("meta"):
        return build_tower(TowerConfig(backbone=backbone), in_channels=in_channels, num_classes=num_classes)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "in_channels", "num_classes", "parameters"),
    [
        ("vgg_m_2048", 3, 101, 90_627_813),
        ("vgg_m_2048", 20, 101, 90_707_781),
        ("vgg16", 3, 101, 134_674_341),
        ("vgg16", 20, 101, 134_684_133),
        ("vgg16", 3, 1000, 138_357_544),
        ("resnet50", 3, 101, 23_714_981),
        ("resnet50", 20, 101, 23_768_293),
        ("resnet50", 3, 1000, 25_557_032),
    ],
)
def test_tower_has_the_papers_number_of_parameters(
    backbone: str, in_channels: int, num_classes: int, parameters: int
) -> None:
    assert count(tower_on_paper(backbone, in_channels=in_channels, num_classes=num_classes)) == parameters


def test_each_layer_of_vgg_m_has_the_papers_number_of_parameters() -> None:
    tower = tower_on_paper("vgg_m_2048")
    counts = {name: count(tower.get_submodule(name)) for name in tower.names if count(tower.get_submodule(name))}
    assert counts == {
        "conv1": 14_208,
        "conv2": 614_656,
        "conv3": 1_180_160,
        "conv4": 2_359_808,
        "conv5": 2_359_808,
        "fc6": 75_501_568,
        "fc7": 8_390_656,
        "fc8": 206_949,
    }


def test_vgg_m_maps_shrink_as_in_the_paper() -> None:
    tower = tower_on_paper("vgg_m_2048", in_channels=20)
    sizes, maps, above = {}, torch.empty(1, 20, 224, 224, device="meta"), None
    for name in tower.names:
        maps = tower(maps, after=above, upto=name)
        sizes[name], above = maps.shape[-1], name
    assert [sizes[name] for name in ("conv1", "pool1", "conv2", "pool2", "relu5", "pool5", "fc6", "fc8")] == [
        *(109, 54, 26, 13, 13, 6, 1, 1)
    ]


@pytest.mark.parametrize(("backbone", "layer", "size"), [("vgg16", "relu5_3", 14), ("resnet50", "res5a_relu", 7)])
def test_papers_layer_names_are_addressable(backbone: str, layer: str, size: int) -> None:
    maps = tower_on_paper(backbone)(torch.empty(2, 3, 224, 224, device="meta"), upto=layer)
    assert tuple(maps.shape) == (2, layer_channels(TowerConfig(backbone=backbone))[layer], size, size)


def test_only_the_spatial_vgg_m_normalises_twice() -> None:
    assert "norm2" in tower_on_paper("vgg_m_2048").names
    assert "norm2" not in tower_on_paper("vgg_m_2048", in_channels=20).names


def test_local_response_norm_is_krizhevskys() -> None:
    maps = torch.rand(1, 7, 2, 2) * 50
    norm = tower_on_paper("vgg_m_2048").get_submodule("norm1")
    around = sum(maps[:, max(0, 3 + k)] ** 2 for k in (-2, -1, 0, 1, 2))
    torch.testing.assert_close(norm(maps)[:, 3], maps[:, 3] / (2 + 1e-4 * around) ** 0.75)


@pytest.mark.parametrize("backbone", ["vgg16", "vgg_m_2048", "resnet50", "vgg_small"])
def test_a_tower_run_in_parts_equals_the_tower_run_whole(backbone: str) -> None:
    tower = build_tower(TowerConfig(backbone=backbone, width=4), in_channels=3, num_classes=5).eval()
    frames = torch.rand(1, 3, 224, 224)
    for middle in tower.names[3::7]:
        maps = tower(frames, upto=middle)
        assert maps.shape[1] == tower.channels[middle]
        torch.testing.assert_close(tower(maps, after=middle), tower(frames))


def test_width_scales_every_layer_but_the_classifier() -> None:
    full, half = layer_channels(TowerConfig(), num_classes=7), layer_channels(TowerConfig(width=32), num_classes=7)
    assert {name: maps // 2 for name, maps in full.items() if name != "fc8"} | {"fc8": 7} == half


def test_fully_connected_layer_slides_over_larger_maps() -> None:
    layer = FullyConnected(3, 4, window=2)
    maps = torch.rand(2, 3, 4, 3)
    sliding = layer(maps)
    assert sliding.shape == (2, 4, 3, 2)
    torch.testing.assert_close(sliding[:, :, 2:, 1:], layer(maps[:, :, 2:, 1:]))


def test_frames_too_small_for_the_tower_are_refused_with_both_sizes() -> None:
    with pytest.raises(ConfigError, match="at least 7x7, got 3x3"):
        tower_on_paper("vgg16")(torch.empty(1, 3, 96, 96, device="meta"))


def test_the_same_seed_gives_the_same_tower() -> None:
    towers = []
    for _ in range(2):
        torch.manual_seed(3)
        towers.append(build_tower(TowerConfig(backbone="vgg_small"), in_channels=20, num_classes=5))
    for first, second in zip(*(tower.parameters() for tower in towers), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("layer", "backbone", "other"),
    [
        ("relu5_3", "vgg16", "relu5_3"),
        ("relu5_3", "vgg_m_2048", "relu5"),
        ("relu5", "vgg16", "relu5_3"),
        ("relu5_3", "resnet50", "res5c_relu"),
        ("fc6", "vgg16", "fc6"),
    ],
)
def test_backbones_meet_at_the_end_of_a_stage(layer: str, backbone: str, other: str) -> None:
    assert counterpart(layer, among=list(layer_channels(TowerConfig(backbone=backbone)))) == other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vgg19"}, r"backbone must be one of vgg16, vgg_m_2048, resnet50, vgg_small, got 'vgg19'"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"width": 0}, r"width must be at least 1, got 0"),
        ({"backbone": "vgg_m_2048", "weights": "imagenet"}, r"exists for vgg16 and resnet50, not for vgg_m_2048"),
        ({"weights": "imagenet", "width": 8}, r"needs the full width, got width=8"),
        ({"frozen_through": "relu9"}, r"no layer of vgg16: 'relu9'; its layers are conv1_1, relu1_1"),
    ],
)
def test_bad_tower_settings_are_refused_by_name_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TowerConfig(**settings)


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
