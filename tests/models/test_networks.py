from dataclasses import replace

import pytest
import torch
from small_networks import CONFIGS, RESNET, SMALL, built, fused_model, late, residual, snippets
from torch import Tensor, nn
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import ModelConfig, StfnConfig, StResNetConfig, TowerConfig


@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_that_learns_takes_part_in_every_forward(config: ModelConfig) -> None:
    network = built(config)
    rgb, flow = snippets()
    outputs = network(rgb if network.needs_rgb else None, flow if network.needs_flow else None)
    sum(logits.square().sum() for logits in outputs.values()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(logits.shape == (2, 5) for logits in outputs.values())
    assert network.scores(outputs).shape == (2, sum(network.head_classes))


@pytest.mark.parametrize("config", [fused_model(temporal=temporal) for temporal in ("pool2d", "pool3d", "conv3d")])
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
    assert set(built(fused_model())(rgb, flow)) == {"fused", "temporal"}
    assert set(built(fused_model(keep=False))(rgb, flow)) == {"fused"}


def test_late_fusion_averages_softmax_and_fused_towers_average_logits() -> None:
    first, second = torch.randn(2, 4, 5)
    late_scores = built(late()).scores({"spatial": first, "temporal": second})
    torch.testing.assert_close(late_scores, (first.softmax(1) + second.softmax(1)) / 2)
    fused_scores = built(fused_model()).scores({"fused": first, "temporal": second})
    torch.testing.assert_close(fused_scores, (first + second) / 2)


def test_2d_pooling_cannot_tell_the_order_of_snippets_and_3d_convolution_can() -> None:
    rgb, flow = snippets(num_snippets=5)
    for temporal, differs in (("pool2d", False), ("pool3d", False), ("conv3d", True)):
        network = built(fused_model(temporal=temporal)).eval()
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
    with pytest.raises(ConfigError, match="needs flow, got None"):
        built(fused_model())(rgb, None)


def test_nothing_below_the_fusion_point_learns_when_it_is_frozen() -> None:
    network = built(replace(fused_model(layers=("relu2", "relu4")), freeze_below_fusion=True)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    outputs = network(*snippets())
    sum(logits.square().sum() for logits in outputs.values()).backward()
    below = tuple(f"{tower}.{layer}" for tower in ("spatial", "temporal") for layer in ("conv1", "bn1", "conv2", "bn2"))
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(below), name
    for name, tensor in network.state_dict().items():
        if "running" in name:
            assert torch.equal(tensor, before[name]) == name.startswith(below), name


def test_only_the_last_layer_learns_where_the_rest_of_a_tower_is_frozen() -> None:
    tower = replace(SMALL, frozen_through="drop5")
    network = built(late(tower, streams="spatial"))
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        "spatial.fc8.weight",
        "spatial.fc8.bias",
    ]


@pytest.mark.parametrize("config", [fused_model(), residual("st_resnet"), residual("stfn")])
def test_biases_learn_twice_as_fast_and_only_weights_decay(config: ModelConfig) -> None:
    network = built(config)
    groups = {group["name"]: group for group in network.parameter_groups(lr=0.1, weight_decay=5e-4)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "weights": (0.1, 5e-4),
        "biases": (0.2, 0.0),
        "without decay": (0.1, 0.0),
    }
    assert all(parameter.dim() > 1 for parameter in groups["weights"]["params"])
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    assert id(network.get_parameter("spatial.bn1.weight")) in {id(p) for p in groups["biases"]["params"]}


def test_frozen_parameters_are_in_no_group() -> None:
    network = built(replace(fused_model(), freeze_below_fusion=True))
    grouped = {id(p) for group in network.parameter_groups(lr=0.1, weight_decay=0) for p in group["params"]}
    assert grouped == {id(p) for name, p in network.named_parameters() if "fc8" in name or "fusions" in name}


def test_a_loss_on_one_data_set_leaves_the_other_ones_head_alone() -> None:
    network = built(replace(late(streams="temporal"), head_classes=(3, 2)))
    first, second = network.split_heads(network(None, snippets()[1])["temporal"])
    assert (first.shape, second.shape) == ((2, 3), (2, 2))
    F.cross_entropy(second, torch.tensor([0, 1])).backward()
    gradient = network.get_parameter("temporal.fc8.weight").grad
    assert not gradient[:3].any()
    assert gradient[3:].any()
    assert network.get_parameter("temporal.conv1.weight").grad.any()


def test_probabilities_of_each_data_set_are_the_softmax_of_the_mean_logits_where_maps_are_fused() -> None:
    network = built(replace(fused_model(), head_classes=(3, 2)))
    outputs = {"fused": torch.randn(4, 5), "temporal": torch.randn(4, 5)}
    mean = (outputs["fused"] + outputs["temporal"]) / 2
    expected = torch.cat([F.softmax(mean[:, :3], dim=1), F.softmax(mean[:, 3:], dim=1)], dim=1)
    torch.testing.assert_close(network.probabilities(outputs), expected)


def test_late_scores_of_one_data_set_are_probabilities_over_its_own_classes() -> None:
    network = built(replace(late(), head_classes=(3, 2)))
    outputs = {"spatial": torch.randn(4, 5), "temporal": torch.randn(4, 5)}
    scores = network.scores(outputs)
    assert scores.shape == (4, 5) and torch.equal(network.probabilities(outputs), scores)
    for own in scores.split([3, 2], dim=1):
        torch.testing.assert_close(own.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("injection", ["add", "multiply"])
def test_motion_enters_the_branch_of_appearance_units_and_the_identity_stays_unfused(injection: str) -> None:
    network = built(residual("st_resnet", st_resnet=StResNetConfig(injection=injection))).eval()
    seen: dict[str, Tensor] = {}

    def keep_output(name: str) -> None:
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.update({name: out}))

    def keep_inputs(name: str) -> None:
        network.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, kwargs: seen.update({f"{name} x": args[0], f"{name} F": kwargs["injected"]}),
            with_kwargs=True,
        )

    for stage in (2, 3, 4, 5):
        keep_output(f"spatial.res{stage}a")
        keep_output(f"temporal.res{stage}a_relu")
        keep_inputs(f"spatial.res{stage}b")
        keep_inputs(f"temporal.res{stage}b")
    network(*snippets(size=64))
    for stage in (2, 3, 4, 5):
        appearance, motion = seen[f"spatial.res{stage}a"], seen[f"temporal.res{stage}a_relu"]
        joined = appearance + motion if injection == "add" else appearance * motion
        assert torch.equal(seen[f"spatial.res{stage}b F"], joined)
        assert torch.equal(seen[f"spatial.res{stage}b x"], appearance.relu())
        assert torch.equal(seen[f"temporal.res{stage}b F"], motion)
        assert torch.equal(seen[f"temporal.res{stage}b x"], motion)


def test_inflated_resnet_on_a_still_clip_equals_the_2d_net_away_from_clip_ends() -> None:
    inflated = built(residual("st_resnet")).eval()
    plain = built(late(RESNET)).eval()
    frame = torch.randn(1, 1, 4, 64, 64)
    maps: list[Tensor] = []
    inflated.get_submodule("temporal.fc8").register_forward_hook(lambda _m, _i, out: maps.append(out.flatten(1)))
    inflated(torch.rand(1, 19, 3, 64, 64), frame.expand(1, 19, 4, 64, 64))
    flat = plain.get_submodule("temporal")(frame[0]).flatten(1)
    # Each of the eight temporal convolutions sees one snippet further: 8 snippets at either end differ.
    torch.testing.assert_close(maps[0][8:-8], flat.expand(3, -1))
    assert not torch.allclose(maps[0][0], flat[0], rtol=1e-2)


def test_stfn_gives_one_score_for_a_video_of_any_number_of_snippets() -> None:
    network = built(residual("stfn", tower=SMALL, stfn=StfnConfig(num_blocks=1, branch_maps=4))).eval()
    for num_snippets in (1, 4, 9):
        assert network(*snippets(num_snippets=num_snippets))["fused"].shape == (2, 5)


def test_stfn_sees_the_order_of_snippets() -> None:
    network = built(residual("stfn", tower=SMALL)).eval()
    rgb, flow = snippets(num_snippets=6)
    assert not torch.allclose(network(rgb, flow)["fused"], network(rgb.flip(1), flow.flip(1))["fused"], atol=1e-6)


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    network = built(fused_model(temporal="conv3d")).eval()
    rgb, flow = snippets()
    before = network(rgb, flow)
    laid_out = network.to_channels_last()
    assert laid_out.get_parameter("spatial.conv2.weight").is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(laid_out(rgb, flow), before)
