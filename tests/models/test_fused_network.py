"""Fusion over networks of timm; that over the papers' towers is in test_networks.py."""

import pytest
import torch
from small_networks import CONVNEXT, VIT
from torch import Tensor

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import build_network
from twostream_ray.models.description import describe
from twostream_ray.models.fused_network import FusedNetwork
from twostream_ray.models.fusion import ConvFusion
from twostream_ray.models.networks import Network
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig, temporal_layer

pytest.importorskip("timm")

PX = 96
pytestmark = pytest.mark.usefixtures("seeded")


def fused(spatial: TowerConfig, other: TowerConfig, *layers: str, keep: bool = True, **fusion: object) -> ModelConfig:
    return ModelConfig(
        spatial=spatial,
        temporal=other,
        fusion=FusionConfig(layers=layers, **fusion),
        keep_temporal_tower=keep,
    )


def build(config: ModelConfig) -> Network:
    return build_network(config, num_classes=4, flow_length=2)


def streams(num_snippets: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(2, num_snippets, 3, PX, PX), torch.randn(2, num_snippets, 4, PX, PX)


@pytest.mark.parametrize(("tower", "layer"), [(CONVNEXT, "stages_2"), (VIT, "blocks_3")])
@pytest.mark.parametrize("method", ["sum", "max", "concat", "conv", "bilinear"])
@pytest.mark.parametrize("temporal", ["pool2d", "pool3d", "conv3d"])
def test_every_fusion_goes_with_a_network_of_timm_and_all_that_learns_gets_a_gradient(
    tower: TowerConfig, layer: str, method: str, temporal: str
) -> None:
    if method == "bilinear" and temporal != "pool2d":
        pytest.skip("bilinear fusion leaves no maps to pool")
    network = build(fused(tower, tower, layer, method=method, temporal=temporal, pool_snippets=2))
    outputs = network(*streams())
    assert {name: tuple(scores.shape) for name, scores in outputs.items()} == {"fused": (2, 4), "temporal": (2, 4)}
    torch.stack([scores.sum() for scores in outputs.values()]).sum().backward()
    without = [name for name, values in network.named_parameters() if values.grad is None]
    assert not without


@pytest.mark.parametrize(("tower", "layer"), [(CONVNEXT, "stages_2"), (VIT, "blocks_3")])
@pytest.mark.parametrize("temporal", ["pool2d", "pool3d"])
def test_conv_fusion_starts_as_sum_fusion(tower: TowerConfig, layer: str, temporal: str) -> None:
    conv = build(fused(tower, tower, layer, method="conv", initialisation="identity", temporal=temporal)).eval()
    both = build(fused(tower, tower, layer, method="sum", temporal=temporal)).eval()
    state = conv.state_dict()
    both.load_state_dict({name: values for name, values in state.items() if not name.startswith("fusions.")})
    rgb, flow = streams()
    with torch.no_grad():
        torch.testing.assert_close(conv(rgb, flow)["fused"], both(rgb, flow)["fused"], rtol=1e-5, atol=1e-5)
    assert isinstance(conv, FusedNetwork) and isinstance(conv.fusions[layer], ConvFusion)
    assert not conv.fusions[layer].rectifies, "the maps of these networks have signs"


def test_a_network_of_timm_and_a_papers_tower_are_joined_by_a_projection_that_describe_shows() -> None:
    config = fused(CONVNEXT, TowerConfig(backbone="vgg_small", width=8), "stages_1", temporal="pool2d")
    assert temporal_layer("stages_1", config=config) == "relu3", "the last layer at an eighth of the frame"
    size = describe(config, num_classes=4, flow_length=2, num_snippets=2, size_px=PX)
    assert size["parts"]["projections"]["layers"] == {"stages_1": [2, 32, PX // 8, PX // 8]}
    assert build(config)(*streams())["fused"].shape == (2, 4)


def test_a_convnext_and_a_vision_transformer_are_joined_at_the_same_scale() -> None:
    config = fused(CONVNEXT, VIT, "stages_2", temporal="pool2d", keep=False)
    assert temporal_layer("stages_2", config=config) == "norm"
    assert build(config)(*streams())["fused"].shape == (2, 4)


def test_layers_without_a_counterpart_of_their_scale_are_refused_with_the_scales_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no layer of timm:test_vit has maps at 1/8 .* blocks_0 1/16"):
        fused(CONVNEXT, VIT, "stages_1")


@pytest.mark.parametrize("tower", [CONVNEXT, VIT])
def test_activation_checkpointing_keeps_the_gradients(tower: TowerConfig) -> None:
    config = ModelConfig(architecture="late", spatial=tower, temporal=tower)
    network = build(config).train()
    rgb, flow = streams(1)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        torch.stack([scores.square().sum() for scores in network(rgb, flow).values()]).sum().backward()
        return [values.grad.clone() for values in network.parameters() if values.grad is not None]

    plain = gradients()
    for first, second in zip(plain, (network.checkpoint_activations(), gradients())[1], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("tower", [CONVNEXT, VIT])
def test_stfn_stands_on_a_network_of_timm(tower: TowerConfig) -> None:
    network = build(ModelConfig(architecture="stfn", spatial=tower, temporal=tower))
    assert network(*streams())["fused"].shape == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "layer", "temporal"), [(CONVNEXT, "stages_2", "conv3d"), (VIT, "blocks_3", "pool3d")]
)
def test_a_network_of_timm_compiles_whole_forward_and_backward_and_goes_channels_last(
    tower: TowerConfig, layer: str, temporal: str
) -> None:
    network = build(fused(tower, tower, layer, temporal=temporal, pool_snippets=2))
    rgb, flow = streams(2)
    expected = network(rgb, flow)
    # aot_eager traces all that inductor would, without its minutes of C++.
    compiled = torch.compile(network.to_channels_last(), backend="aot_eager", fullgraph=True)
    outputs = compiled(rgb, flow)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    torch.stack([scores.sum() for scores in outputs.values()]).sum().backward()
    assert all(values.grad is not None and values.grad.isfinite().all() for values in network.parameters())
