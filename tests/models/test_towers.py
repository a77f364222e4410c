import pytest
import torch

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.towers import FullyConnected


@pytest.mark.parametrize("backbone", ["vgg16", "vgg_m_2048", "resnet50", "vgg_small"])
def test_a_tower_run_in_parts_equals_the_tower_run_whole(backbone: str) -> None:
    tower = build_tower(TowerConfig(backbone=backbone, width=4), in_channels=3, num_classes=5).eval()
    frames = torch.rand(1, 3, 224, 224)
    for middle in tower.names[3::7]:
        maps = tower(frames, upto=middle)
        assert maps.shape[1] == tower.channels[middle]
        torch.testing.assert_close(tower(maps, after=middle), tower(frames))


def test_fully_connected_layer_slides_over_larger_maps() -> None:
    layer = FullyConnected(3, 4, window=2)
    maps = torch.rand(2, 3, 4, 3)
    sliding = layer(maps)
    assert sliding.shape == (2, 4, 3, 2)
    torch.testing.assert_close(sliding[:, :, 2:, 1:], layer(maps[:, :, 2:, 1:]))


def test_frames_too_small_for_the_tower_are_refused_with_both_sizes() -> None:
    with pytest.raises(ConfigError, match="at least 7x7, got 3x3"):
        FullyConnected(3, 4, window=7)(torch.empty(1, 3, 3, 3))
