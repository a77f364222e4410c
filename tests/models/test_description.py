import json

import pytest
import torch
from small_networks import CONFIGS

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.description import count_parameters, count_weight_layers, describe, training_flops
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig

VGG16, VGG_M, RESNET = (TowerConfig(backbone=backbone) for backbone in ("vgg16", "vgg_m_2048", "resnet50"))


def late(tower: TowerConfig) -> ModelConfig:
    return ModelConfig(architecture="late", spatial=tower, temporal=tower)


def fused(
    tower: TowerConfig, *layers: str, method: str = "conv", temporal: str = "pool2d", keep: bool = False
) -> ModelConfig:
    fusion = FusionConfig(method=method, temporal=temporal, layers=layers)
    return ModelConfig(spatial=tower, temporal=tower, fusion=fusion, keep_temporal_tower=keep)


def on_paper(config: ModelConfig) -> Network:
    """A full-size network for UCF101 without memory behind its parameters."""
    with torch.device("meta"):
        return build_network(config, num_classes=101, flow_length=10)


# Feichtenhofer et al. 2016, tables 1 and 2: (network, parameters, published millions, published layers).
PUBLISHED = {
    "late": (late(VGG_M), 181_335_594, 181.42, 16),
    "sum": (fused(VGG_M, "relu5", method="sum"), 97_236_421, 97.31, 13),
    "max": (fused(VGG_M, "relu5", method="max"), 97_236_421, 97.31, 13),
    "concat": (fused(VGG_M, "relu5", method="concat"), 172_733_893, 172.81, 13),
    "conv relu5": (fused(VGG_M, "relu5"), 97_761_221, 97.58, 14),
    "conv relu4": (fused(VGG_M, "relu4"), 95_401_413, 95.48, 13),
    "conv relu3": (fused(VGG_M, "relu3"), 93_041_605, 93.08, 12),
    "conv relu2": (fused(VGG_M, "relu2"), 91_467_973, 91.90, 11),
    "conv relu5 fc8": (fused(VGG_M, "relu5", "fc8"), 181_860_394, 181.68, 17),
    "conv relu3 relu5 fc6": (fused(VGG_M, "relu3", "relu5", "fc6"), 207_346_117, 190.06, 17),
}


@pytest.mark.parametrize("row", PUBLISHED)
def test_vgg_m_network_has_the_parameters_of_its_architecture_and_the_published_layers(row: str) -> None:
    config, parameters, _, layers = PUBLISHED[row]
    network = on_paper(config)
    assert count_parameters(network) == parameters
    assert count_weight_layers(network) == layers


def test_bilinear_network_has_the_published_layers_below_its_linear_classifier() -> None:
    network = on_paper(fused(VGG_M, "relu5", method="bilinear"))
    classifier = network.get_submodule("classifier")
    assert count_parameters(network) - count_parameters(classifier) == 13_137_248
    assert count_weight_layers(network) - count_weight_layers(classifier) == 10
    assert count_parameters(classifier) == (512 * 512 + 1) * 101


@pytest.mark.parametrize("row", sorted(PUBLISHED.keys() - {"conv relu3 relu5 fc6"}))
def test_parameters_are_within_half_a_percent_of_the_published_ones(row: str) -> None:
    _, parameters, published, _ = PUBLISHED[row]
    assert parameters == pytest.approx(published * 1e6, rel=0.005)


def papers_count(
    *,
    temporal_convs: int = 5,
    temporal_fcs: int = 0,
    fusion_filter: int = 0,
    extra_fc6_maps: int = 0,
) -> float:
    """Millions of parameters as the paper counts: conv1 sees 20 channels in both towers, a filter is D x D."""
    convs = [20 * 49 * 96 + 96, 96 * 25 * 256 + 256, 256 * 9 * 512 + 512, *[512 * 9 * 512 + 512] * 2]
    fcs = [512 * 36 * 4096 + 4096, 4096 * 2048 + 2048, 2048 * 101 + 101]
    spatial = sum(convs) + sum(fcs) + extra_fc6_maps * 36 * 4096
    fusion = fusion_filter * 512 + 512 if fusion_filter else 0
    return (spatial + sum(convs[:temporal_convs]) + sum(fcs[:temporal_fcs]) + fusion) / 1e6


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ("late", papers_count(temporal_fcs=3)),
        ("sum", papers_count()),
        ("max", papers_count()),
        ("concat", papers_count(extra_fc6_maps=512)),
        ("conv relu5", papers_count(fusion_filter=512)),
        ("conv relu5 fc8", papers_count(fusion_filter=512, temporal_fcs=3)),
        # At relu4 the paper's own total needs the whole filter, 2D x D.
        ("conv relu4", papers_count(fusion_filter=1024, temporal_convs=4)),
    ],
)
def test_published_totals_follow_from_the_papers_own_counting(row: str, counted: float) -> None:
    assert counted == pytest.approx(PUBLISHED[row][2], abs=0.01)


def test_published_bilinear_total_is_one_towers_convolutions() -> None:
    one_tower = sum(count_parameters(on_paper(late(VGG_M)).get_submodule(f"temporal.conv{i}")) for i in range(1, 6))
    assert one_tower / 1e6 == pytest.approx(6.61, abs=0.01)


def test_one_tower_after_fusion_saves_almost_half_of_late_fusion() -> None:
    late_total, sum_total = PUBLISHED["late"][1], PUBLISHED["sum"][1]
    assert late_total - sum_total == 84_099_173
    assert PUBLISHED["concat"][1] - sum_total == 6 * 6 * 512 * 4096
    assert 0.46 < 1 - PUBLISHED["conv relu5"][1] / late_total < 0.47


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (late(VGG16), 269_358_474),
        (fused(VGG16, "relu5_3", method="sum"), 149_398_821),
        (fused(VGG16, "relu5_3", method="max"), 149_398_821),
        (fused(VGG16, "relu5_3", method="concat"), 252_159_269),
        (fused(VGG16, "relu5_3"), 149_923_621),
        (fused(VGG16, "relu5_3", keep=True), 269_883_274),
        (fused(VGG16, "relu5_3", temporal="conv3d"), 163_555_109),
        (ModelConfig(), 283_514_762),
        (late(RESNET), 47_483_274),
        (ModelConfig(architecture="st_resnet", spatial=RESNET, temporal=RESNET), 58_624_394),
    ],
)
def test_vgg16_and_resnet50_networks_have_the_parameters_of_their_architecture(
    config: ModelConfig, parameters: int
) -> None:
    assert count_parameters(on_paper(config)) == parameters


def described(config: ModelConfig, **settings: int) -> dict:
    return describe(config, **{"num_classes": 101, "flow_length": 10, "num_snippets": 5, "size_px": 224} | settings)


def test_description_of_the_default_network() -> None:
    description = described(ModelConfig())
    assert json.loads(json.dumps(description)) == description
    assert description["parameters"] == 283_514_762
    assert description["gradient_bytes"] == 4 * 283_514_762
    assert description["weight_layers"] == 33
    # Three times this, forward and both halves of backward, is the 1.020 TFLOP of a training sample.
    assert description["gflops_forward"] == pytest.approx(340.07, abs=0.01)
    parts = description["parts"]
    assert sum(part["parameters"] for part in parts.values()) == description["parameters"]
    assert parts["temporal"]["parameters"] == 134_684_133
    assert parts["spatial"]["layers"]["relu5_3"] == [5, 512, 14, 14]
    assert parts["fusions"]["layers"]["relu5_3"] == [5, 1024, 14, 14]
    assert parts["time_conv"]["layers"]["time_conv"] == [5, 512, 14, 14]
    assert parts["spatial"]["layers"]["pool5"] == [1, 512, 7, 7]
    assert parts["spatial"]["layers"]["fc8"] == [1, 101, 1, 1]


def test_a_convolution_counts_a_multiply_and_an_add_for_every_weight_and_place() -> None:
    tower = TowerConfig(backbone="vgg_small", width=4)
    config = ModelConfig(architecture="late", streams="spatial", spatial=tower, temporal=tower)
    description = described(config, num_classes=5, num_snippets=3, size_px=32)
    maps = {"conv1": (3, 4, 16), "conv2": (4, 8, 8), "conv3": (8, 8, 4), "conv4": (8, 8, 2)}
    convs = sum(2 * 9 * inputs * outputs * size**2 for inputs, outputs, size in maps.values())
    assert description["gflops_forward"] * 1e9 == pytest.approx(3 * (convs + 2 * 8 * 5))


def test_frozen_towers_have_no_gradients_and_keep_no_activations() -> None:
    description = described(ModelConfig(freeze_below_fusion=True))
    assert description["gradient_bytes"] == 4 * 254_075_594
    assert description["activation_bytes"] < described(ModelConfig())["activation_bytes"] / 50


def test_activation_bytes_are_what_autograd_keeps_once_for_each_tensor() -> None:
    tower = TowerConfig(backbone="vgg_small", width=4, dropout=0)
    config = ModelConfig(architecture="late", streams="spatial", spatial=tower, temporal=tower)
    network = build_network(config, num_classes=5, flow_length=10)
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        network(torch.rand(1, 3, 3, 32, 32), None)
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    sizes = [tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters]
    assert described(config, num_classes=5, num_snippets=3, size_px=32)["activation_bytes"] == sum(sizes)


@pytest.mark.parametrize("size_px", [96, 16])
def test_frames_too_small_for_a_network_are_refused(size_px: int) -> None:
    with pytest.raises(ConfigError, match="use larger"):
        described(ModelConfig(), size_px=size_px)


def on_meta(config: ModelConfig) -> Network:
    with torch.device("meta"):
        return build_network(config, num_classes=5, flow_length=2, pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_training_step_takes_at_most_three_times_the_operations_of_its_forward_pass(config: ModelConfig) -> None:
    forward = describe(config, num_classes=5, flow_length=2, num_snippets=3, size_px=32)["gflops_forward"] * 1e9
    trained = training_flops(on_meta(config), flow_length=2, num_snippets=3, size_px=32)
    # Nobody needs the gradients of pixels.
    assert (1.0 if config.freeze_below_fusion else 2.0) < trained / forward <= 3.0


def test_a_tower_that_learns_nothing_has_no_backward_pass() -> None:
    tower = TowerConfig(backbone="vgg_small", frozen_through="drop5")
    config = ModelConfig(architecture="late", streams="spatial", spatial=tower)
    forward = describe(config, num_classes=5, flow_length=2, num_snippets=1, size_px=32)["gflops_forward"] * 1e9
    # The classifier's weights alone get gradients: 64 x 5 products.
    trained = training_flops(on_meta(config), flow_length=2, num_snippets=1, size_px=32)
    assert trained == forward + 2 * 64 * 5
