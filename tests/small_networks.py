"""Networks of every architecture, small enough to run at once, and snippets for them."""

from dataclasses import replace

import torch
from torch import Tensor

from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import Clip3dConfig, FusionConfig, ModelConfig, StResNetConfig, TowerConfig

SMALL = TowerConfig(backbone="vgg_small", width=4, dropout=0)
CLIP3D = ModelConfig(architecture="clip3d", clip3d=Clip3dConfig(network="r3d_18", width=4))
RESNET = TowerConfig(backbone="resnet50", width=4, dropout=0)
CONVNEXT = TowerConfig(backbone="timm:test_convnext", dropout=0)
VIT = TowerConfig(backbone="timm:test_vit", dropout=0)


def fused_model(tower: TowerConfig = SMALL, *, keep: bool = True, **fusion: object) -> ModelConfig:
    layers = {
        "vgg16": "relu5_3",
        "vgg_m_2048": "relu5",
        "vgg_small": "relu4",
        "resnet50": "res5c_relu",
        CONVNEXT.backbone: "stages_1",
        VIT.backbone: "blocks_3",
    }
    settings = {"layers": (layers[tower.backbone],), "temporal": "pool2d"} | fusion
    return ModelConfig(spatial=tower, temporal=tower, fusion=FusionConfig(**settings), keep_temporal_tower=keep)


def late(tower: TowerConfig = SMALL, streams: str = "both") -> ModelConfig:
    return ModelConfig(architecture="late", streams=streams, spatial=tower, temporal=tower)


def residual(architecture: str, tower: TowerConfig = RESNET, **settings: object) -> ModelConfig:
    return ModelConfig(architecture=architecture, spatial=tower, temporal=tower, **settings)


def snippets(num_samples: int = 2, num_snippets: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    return torch.rand(num_samples, num_snippets, 3, size, size), torch.randn(num_samples, num_snippets, 4, size, size)


def built(config: ModelConfig, *, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_network(config, num_classes=5, flow_length=2)


CONFIGS = [
    late(),
    late(streams="spatial"),
    late(streams="temporal"),
    *(fused_model(method=method) for method in ("sum", "max", "concat", "conv", "bilinear")),
    *(fused_model(method=method, temporal="conv3d") for method in ("sum", "max", "concat", "conv")),
    fused_model(temporal="pool3d"),
    fused_model(temporal="pool3d", keep=False),
    fused_model(temporal="conv3d", keep=False),
    fused_model(layers=("relu2", "relu4", "fc8"), temporal="conv3d", keep=False),
    fused_model(layers=("fc8",), temporal="pool3d", keep=False),
    fused_model(layers=("relu2", "relu4"), method="concat", keep=False),
    residual("st_resnet"),
    residual("st_resnet", st_resnet=StResNetConfig(injection="multiply", pools_time=True)),
    *(residual("stfn", tower=SMALL, fusion=FusionConfig(method=method)) for method in ("sum", "max", "concat", "conv")),
    residual("stfn"),
    replace(fused_model(temporal="conv3d"), freeze_below_fusion=True),
    replace(late(), head_classes=(3, 2)),
    CLIP3D,
    late(CONVNEXT),
    late(VIT),
    fused_model(CONVNEXT, temporal="conv3d"),
    fused_model(CONVNEXT, method="concat", keep=False),
    fused_model(VIT, temporal="pool3d"),
    fused_model(VIT, temporal="conv3d", keep=False),
]


def narrow_default() -> Network:
    tower = TowerConfig(width=2, dropout=0)
    return built(ModelConfig(spatial=tower, temporal=tower))
