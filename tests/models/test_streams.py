import pytest
import torch
from torch import nn

from twostream_ray.models.settings import TowerConfig, layer_channels
from twostream_ray.models.streams import build_tower
from twostream_ray.models.towers import Tower


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


def test_the_same_seed_gives_the_same_tower() -> None:
    towers = []
    for _ in range(2):
        torch.manual_seed(3)
        towers.append(build_tower(TowerConfig(backbone="vgg_small"), in_channels=20, num_classes=5))
    for first, second in zip(*(tower.parameters() for tower in towers), strict=True):
        assert torch.equal(first, second)
