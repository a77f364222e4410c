import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import (
    Clip3dConfig,
    FusionConfig,
    ModelConfig,
    StfnConfig,
    StResNetConfig,
    TowerConfig,
    layer_channels,
)

VGG_M = TowerConfig(backbone="vgg_m_2048")
SMALL = TowerConfig(backbone="vgg_small", width=4)
RESNET = TowerConfig(backbone="resnet50", width=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "early"}, r"architecture must be one of late, fused, st_resnet, stfn, clip3d, got 'early'"),
        ({"streams": "audio"}, r"model\.streams must be one of both, spatial, temporal, got 'audio'"),
        ({"streams": "spatial"}, r"model\.streams=spatial goes with model\.architecture=late"),
        ({"num_classes": 0}, r"model\.num_classes must be at least 1, got 0"),
        (
            {"fusion": FusionConfig(layers=("relu5",))},
            r"model\.fusion\.layers: vgg16 has no layer 'relu5'; its layers are conv1_1, .*fc8",
        ),
        ({"temporal": SMALL}, r"no counterpart of 'relu5_3'; its layers are conv1, bn1"),
        (
            {"fusion": FusionConfig(layers=("relu3_3",)), "temporal": VGG_M},
            r"got 256 at spatial relu3_3 and 512 at temporal relu3",
        ),
        ({"fusion": FusionConfig(layers=("relu5_3", "relu4_3"))}, r"must follow the tower's order"),
        ({"fusion": FusionConfig(layers=("fc6",))}, r"conv3d wants a fusion layer before pool5, got \['fc6'\]"),
        (
            {"fusion": FusionConfig(method="bilinear", temporal="pool2d", layers=("fc6",))},
            r"bilinear wants a layer before pool5, got fc6",
        ),
        (
            {"fusion": FusionConfig(method="concat", temporal="pool2d", layers=("fc8",))},
            r"concat cannot join class scores at fc8",
        ),
        ({"architecture": "late", "freeze_below_fusion": True}, r"goes with model\.architecture=fused, got late"),
        ({"head_classes": (3, 0)}, r"model.head_classes must be at least 1, got \(3, 0\)"),
        ({"head_classes": (3, 4), "num_classes": 8}, r"add up to model\.num_classes, got \[3, 4\] and 8"),
        ({"architecture": "st_resnet"}, r"wants model\.spatial\.backbone=resnet50, got vgg16"),
        ({"architecture": "stfn", "temporal": RESNET}, r"got 4096 from vgg16 and 128 from resnet50"),
        (
            {"architecture": "stfn", "fusion": FusionConfig(method="bilinear", temporal="pool2d")},
            r"sum, max, concat or conv, got bilinear",
        ),
    ],
)
def test_impossible_networks_are_refused_by_name_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


def test_width_scales_every_layer_but_the_classifier() -> None:
    full, half = layer_channels(TowerConfig(), num_classes=7), layer_channels(TowerConfig(width=32), num_classes=7)
    assert {name: maps // 2 for name, maps in full.items() if name != "fc8"} | {"fc8": 7} == half


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vgg19"}, r"must be one of vgg16, vgg_m_2048, resnet50, vgg_small, or timm: .*, got 'vgg19'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"width": 0}, r"width must be at least 1, got 0"),
        ({"backbone": "vgg_m_2048", "weights": "imagenet"}, r"exists for vgg16 and resnet50, not for vgg_m_2048"),
        ({"weights": "kinetics400"}, r"exists for networks over video \(model.clip3d.weights\), not for vgg16: give"),
        ({"backbone": "timm:test_vit", "weights": "kinetics400"}, r"not for timm:test_vit: .* or weights=timm"),
        ({"weights": "imagenet", "width": 8}, r"needs the full width, got width=8"),
        ({"frozen_through": "relu9"}, r"no layer of vgg16: 'relu9'; its layers are conv1_1, relu1_1"),
    ],
)
def test_bad_tower_settings_are_refused_by_name_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TowerConfig(**settings)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (StResNetConfig, {"injection": "concat"}, r"st_resnet\.injection must be one of add, multiply, got 'concat'"),
        (
            Clip3dConfig,
            {"weights": "imagenet"},
            r"clip3d\.weights=imagenet exists for networks over images, .*kinetics400",
        ),
        (
            Clip3dConfig,
            {"weights": "timm"},
            r"clip3d\.weights=timm exists for networks over images, not for r2plus1d_18",
        ),
        (StfnConfig, {"num_blocks": 0}, r"stfn\.num_blocks must be at least 1, got 0"),
        (StfnConfig, {"residual_scale": 0.0}, r"stfn\.residual_scale must be in \(0, 1\], got 0\.0"),
    ],
)
def test_bad_settings_over_time_are_refused_by_name_and_value(config: type, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mean"}, r"fusion\.method must be one of sum, max, concat, conv, bilinear, got 'mean'"),
        ({"temporal": "lstm"}, r"fusion\.temporal must be one of pool2d, pool3d, conv3d, got 'lstm'"),
        ({"initialisation": "xavier"}, r"must be one of identity, official, gaussian, got 'xavier'"),
        ({"layers": ()}, r"fusion\.layers must name one layer or several different ones, got \[\]"),
        ({"layers": ("fc6", "fc6")}, r"several different ones, got \['fc6', 'fc6'\]"),
        ({"pool_stride": 0}, r"fusion.pool_stride must be at least 1, got 0"),
        (
            {"method": "bilinear", "temporal": "pool3d"},
            r"wants one entry in fusion\.layers and fusion\.temporal=pool2d",
        ),
    ],
)
def test_bad_fusion_settings_are_refused_by_name_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FusionConfig(**settings)
