from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import FusionConfig
from twostream_ray.models.networks import ModelConfig, Network, build_network
from twostream_ray.models.streams import TowerConfig

VGG_M = TowerConfig(backbone="vgg_m_2048")
SMALL = TowerConfig(backbone="vgg_small", width=4, dropout=0)


def model(tower: TowerConfig = SMALL, *, keep: bool = True, **fusion: object) -> ModelConfig:
    layers = {"vgg16": "relu5_3", "vgg_m_2048": "relu5", "vgg_small": "relu4", "resnet50": "res5c_relu"}
    settings = {"layers": (layers[tower.backbone],), "temporal": "pool2d"} | fusion
    return ModelConfig(spatial=tower, temporal=tower, fusion=FusionConfig(**settings), keep_temporal_tower=keep)


def late(tower: TowerConfig = SMALL, streams: str = "both") -> ModelConfig:
    return ModelConfig(architecture="late", streams=streams, spatial=tower, temporal=tower)


def on_paper(config: ModelConfig) -> Network:
    """A full-size network for UCF101 without memory behind its parameters."""
    with torch.device("meta"):
        return build_network(config, num_classes=101, flow_length=10)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def snippets(num_samples: int = 2, num_snippets: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    return torch.rand(num_samples, num_snippets, 3, size, size), torch.randn(num_samples, num_snippets, 4, size, size)


def built(config: ModelConfig, *, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_network(config, num_classes=5, flow_length=2)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (late(VGG_M), 181_335_594),
        (model(VGG_M, method="sum", keep=False), 97_236_421),
        (model(VGG_M, method="max", keep=False), 97_236_421),
        (model(VGG_M, method="concat", keep=False), 172_733_893),
        (model(VGG_M, keep=False), 97_761_221),
        (model(VGG_M, layers=("relu4",), keep=False), 95_401_413),
        (model(VGG_M, layers=("relu3",), keep=False), 93_041_605),
        (model(VGG_M, layers=("relu2",), keep=False), 91_467_973),
        (model(VGG_M, layers=("relu5", "fc8"), keep=False), 181_860_394),
        (model(VGG_M, layers=("relu3", "relu5", "fc6"), keep=False), 207_346_117),
        (late(TowerConfig()), 269_358_474),
        (model(TowerConfig(), method="sum", keep=False), 149_398_821),
        (model(TowerConfig(), method="max", keep=False), 149_398_821),
        (model(TowerConfig(), method="concat", keep=False), 252_159_269),
        (model(TowerConfig(), keep=False), 149_923_621),
        (model(TowerConfig()), 269_883_274),
        (model(TowerConfig(), temporal="conv3d", keep=False), 163_555_109),
        (ModelConfig(), 283_514_762),
    ],
)
def test_network_has_the_number_of_parameters_its_architecture_implies(config: ModelConfig, parameters: int) -> None:
    assert count(on_paper(config)) == parameters


def test_bilinear_network_has_two_towers_of_convolutions_and_a_linear_classifier() -> None:
    network = on_paper(model(VGG_M, method="bilinear", keep=False))
    assert count(network) - count(network.get_submodule("classifier")) == 13_137_248
    assert count(network.get_submodule("classifier")) == (512 * 512 + 1) * 101


CONFIGS = [
    late(),
    late(streams="spatial"),
    late(streams="temporal"),
    *(model(method=method) for method in ("sum", "max", "concat", "conv", "bilinear")),
    *(model(method=method, temporal="conv3d") for method in ("sum", "max", "concat", "conv")),
    model(temporal="pool3d"),
    model(temporal="pool3d", keep=False),
    model(temporal="conv3d", keep=False),
    model(layers=("relu2", "relu4", "fc8"), temporal="conv3d", keep=False),
    model(layers=("fc8",), temporal="pool3d", keep=False),
    model(layers=("relu2", "relu4"), method="concat", keep=False),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_that_learns_takes_part_in_every_forward(config: ModelConfig) -> None:
    network = built(config)
    rgb, flow = snippets()
    outputs = network(rgb if network.needs_rgb else None, flow if network.needs_flow else None)
    sum(logits.square().sum() for logits in outputs.values()).backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(logits.shape == (2, 5) for logits in outputs.values())
    assert network.scores(outputs).shape == (2, 5)


@pytest.mark.parametrize("config", [model(temporal=temporal) for temporal in ("pool2d", "pool3d", "conv3d")])
def test_gradients_reach_the_first_layer_of_both_towers(config: ModelConfig) -> None:
    network = built(config)
    network(*snippets())["fused"].square().sum().backward()
    assert network.get_parameter("spatial.conv1.weight").grad.abs().sum() > 0
    assert network.get_parameter("temporal.conv1.weight").grad.abs().sum() > 0


def test_outputs_are_named_after_the_towers_that_have_a_loss() -> None:
    rgb, flow = snippets()
    assert set(built(late())(rgb, flow)) == {"spatial", "temporal"}
    assert set(built(late(streams="spatial"))(rgb, None)) == {"spatial"}
    assert set(built(late(streams="temporal"))(None, flow)) == {"temporal"}
    assert set(built(model())(rgb, flow)) == {"fused", "temporal"}
    assert set(built(model(keep=False))(rgb, flow)) == {"fused"}


def test_late_fusion_averages_softmax_and_fused_towers_average_logits() -> None:
    first, second = torch.randn(2, 4, 5)
    late_scores = built(late()).scores({"spatial": first, "temporal": second})
    torch.testing.assert_close(late_scores, (first.softmax(1) + second.softmax(1)) / 2)
    fused_scores = built(model()).scores({"fused": first, "temporal": second})
    torch.testing.assert_close(fused_scores, (first + second) / 2)


def test_single_streams_inside_the_fused_network_equal_the_stand_alone_ones() -> None:
    fused = built(model()).eval()
    rgb, flow = snippets()
    for stream in ("spatial", "temporal"):
        alone = built(late(streams=stream), seed=1).eval()
        own = {name: tensor for name, tensor in fused.state_dict().items() if name.startswith(stream)}
        alone.load_state_dict(own)
        inside = fused.get_submodule(stream)((rgb if stream == "spatial" else flow).flatten(0, 1))
        torch.testing.assert_close(alone(rgb, flow)[stream], inside.unflatten(0, (2, 3)).mean(dim=(1, 3, 4)))
    torch.testing.assert_close(fused(rgb, flow)["temporal"], alone(rgb, flow)["temporal"])


def test_2d_pooling_cannot_tell_the_order_of_snippets_and_3d_convolution_can() -> None:
    rgb, flow = snippets(num_snippets=5)
    for temporal, differs in (("pool2d", False), ("pool3d", False), ("conv3d", True)):
        network = built(model(temporal=temporal)).eval()
        forward, backward = network(rgb, flow)["fused"], network(rgb.flip(1), flow.flip(1))["fused"]
        # The 3D filters start symmetric in time; a step of learning breaks that.
        if differs:
            nn.init.normal_(network.get_parameter("time_conv.conv.weight"))
            forward, backward = network(rgb, flow)["fused"], network(rgb.flip(1), flow.flip(1))["fused"]
        assert torch.allclose(forward, backward, atol=1e-5) != differs


def test_vgg16_and_vgg_m_fuse_with_a_padded_row_and_column() -> None:
    spatial, temporal = TowerConfig(width=2), TowerConfig(backbone="vgg_m_2048", width=3)
    network = built(ModelConfig(spatial=spatial, temporal=temporal))
    outputs = network(torch.rand(1, 2, 3, 224, 224), torch.rand(1, 2, 4, 224, 224))
    assert outputs["fused"].shape == outputs["temporal"].shape == (1, 5)


def test_larger_frames_give_the_mean_over_the_places_of_the_window() -> None:
    network = built(late(TowerConfig(width=2, dropout=0), streams="spatial")).eval()
    rgb = torch.rand(1, 2, 3, 256, 256)
    maps = network.get_submodule("spatial")(rgb[0])
    assert maps.shape == (2, 5, 2, 2)
    torch.testing.assert_close(network(rgb, None)["spatial"][0], maps.mean(dim=(0, 2, 3)))


def test_a_missing_stream_is_refused_by_name() -> None:
    rgb, _ = snippets()
    with pytest.raises(ConfigError, match="wants flow, got None"):
        built(model())(rgb, None)


def test_class_counts_of_settings_and_data_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"model\.num_classes is 7, but the data has 5 classes"):
        built(replace(model(), num_classes=7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "early"}, r"model\.architecture must be one of late, fused, .*got 'early'"),
        ({"streams": "audio"}, r"model\.streams must be one of both, spatial, temporal, got 'audio'"),
        ({"streams": "spatial"}, r"model\.streams=spatial goes with model\.architecture=late"),
        ({"num_classes": 0}, r"model\.num_classes must be at least 1, got 0"),
        (
            {"fusion": FusionConfig(layers=("relu5",))},
            r"model\.fusion\.layers: vgg16 has no layer 'relu5'; its layers are conv1_1, .*fc8",
        ),
        ({"temporal": SMALL}, r"nothing like layer 'relu5_3'; its layers are conv1, bn1"),
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
    ],
)
def test_impossible_networks_are_refused_by_name_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)
