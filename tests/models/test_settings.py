import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import FusionConfig
from twostream_ray.models.settings import ModelConfig
from twostream_ray.models.streams import TowerConfig

VGG_M = TowerConfig(backbone="vgg_m_2048")
SMALL = TowerConfig(backbone="vgg_small", width=4)
RESNET = TowerConfig(backbone="resnet50", width=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "early"}, r"model\.architecture must be one of late, fused, st_resnet, stfn, got 'early'"),
        ({"streams": "audio"}, r"model\.streams must be one of both, spatial, temporal, got 'audio'"),
        ({"streams": "spatial"}, r"model\.streams=spatial goes with model\.architecture=late"),
        ({"num_classes": 0}, r"model\.num_classes must be at least 1, got 0"),
        (
            {"fusion": FusionConfig(layers=("relu5",))},
            r"model\.fusion\.layers: vgg16 has no layer 'relu5'; its layers are conv1_1, .*fc8",
        ),
        ({"temporal": SMALL}, r"nothing like 'relu5_3'; its layers are conv1, bn1"),
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
