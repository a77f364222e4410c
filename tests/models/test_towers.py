import pytest
import torch
from torch import nn

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.towers import FullyConnected, Tower


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


@pytest.mark.parametrize("backbone", ["vgg16", "vgg_m_2048"])
def test_fully_connected_layers_over_larger_maps_are_those_of_every_window(backbone: str) -> None:
    """The papers' dense test: fc6 to fc8 slide over pool5's maps with the weights of the 224 px crop."""
    torch.manual_seed(0)
    tower = build_tower(TowerConfig(backbone=backbone, width=8), in_channels=3, num_classes=5).eval()
    with torch.no_grad():
        window = tower(torch.zeros(1, 3, 224, 224), upto="pool5").shape[-1]
        maps = tower(torch.randn(2, 3, 256, 342), upto="pool5")
        sliding = tower(maps, after="pool5")
        rows, columns = sliding.shape[-2:]
        assert (rows, columns) == (maps.shape[2] - window + 1, maps.shape[3] - window + 1) and columns > rows > 1
        for top in range(rows):
            for left in range(columns):
                part = maps[:, :, top : top + window, left : left + window]
                torch.testing.assert_close(sliding[:, :, top, left], tower(part, after="pool5")[:, :, 0, 0])


@pytest.mark.slow
def test_vgg16_over_a_frame_scores_as_on_the_crops_that_align() -> None:
    """VGG-16 slides by 32 px: its 2 x 2 scores of 256 x 256 px are those of the four 224 px crops 32 px apart.

    At its borders a crop is padded with zeros where the frame has pixels. So that both are the same, the frame is 0 but
    for its middle, and convolutions have no bias, which would make something of nothing: on maps of 16 px a cell, what
    the middle reaches is in cells 2 to 13, and the crops are cells 0 to 13 and 2 to 15.
    """
    torch.manual_seed(0)
    tower = build_tower(TowerConfig(backbone="vgg16"), in_channels=3, num_classes=5).eval()
    for name, parameter in tower.named_parameters():
        if name.startswith("conv") and name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    frame = torch.zeros(1, 3, 256, 256)
    frame[:, :, 124:132, 124:132] = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        scores = tower(frame)
        assert scores.shape == (1, 5, 2, 2)
        for row in (0, 1):
            for column in (0, 1):
                top, left = 32 * row, 32 * column
                crop = frame[:, :, top : top + 224, left : left + 224]
                torch.testing.assert_close(scores[:, :, row, column], tower(crop)[:, :, 0, 0])
    assert scores.std(dim=(2, 3)).min() > 1e-3, "all windows alike"


def test_a_frozen_part_keeps_the_moments_of_every_batch_norm() -> None:
    layers = {
        "maps": nn.BatchNorm2d(3),
        "features": nn.Sequential(nn.Flatten(1), nn.BatchNorm1d(3)),
        "fc8": nn.Linear(3, 2),
    }
    tower = Tower(layers, channels={"maps": 3, "features": 3, "fc8": 2})
    tower.freeze("features")
    before = {name: values.clone() for name, values in tower.named_buffers()}
    tower.train()(torch.rand(4, 3, 1, 1))
    assert all(torch.equal(values, before[name]) for name, values in tower.named_buffers())
