from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import CONFIGS, RESNET, SMALL, built, fused_model, late, residual
from torch import nn

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import Network
from twostream_ray.models.networks import LateNetwork
from twostream_ray.models.parameter_groups import parameter_groups
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.models.towers import FullyConnected, Tower


def rates(network: Network, layer_decay: float | None = 0.5) -> dict[str, float]:
    """The rate of each parameter that learns, where that of the last layers is 1."""
    groups = network.parameter_groups(lr=1.0, weight_decay=0.1, bias_lr_factor=1.0, layer_decay=layer_decay)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {name: rate[id(one)] for name, one in network.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("bias_lr_factor", [1.0, 2.0])
def test_every_parameter_that_learns_is_in_one_group_and_only_weights_decay(
    config: ModelConfig, layer_decay: float | None, bias_lr_factor: float
) -> None:
    network = built(config)
    groups = network.parameter_groups(lr=0.1, weight_decay=0.01, bias_lr_factor=bias_lr_factor, layer_decay=layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(one) for one in network.parameters() if one.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    tokens = {id(one) for name, one in network.named_parameters() if name.endswith(("pos_embed", "cls_token"))}
    assert bool(tokens) == ("vit" in str(config))
    for group in groups:
        assert group["weight_decay"] == (0.01 if group["name"].startswith("weights") else 0.0)
        for one in group["params"]:
            assert (one.dim() > 1 and id(one) not in tokens) == (group["weight_decay"] > 0)


def test_a_layer_learns_slower_by_the_factor_for_each_layer_of_weights_above_it() -> None:
    found = rates(built(late(streams="spatial")))
    for layer, above in {"conv1": 4, "bn1": 4, "conv2": 3, "conv3": 2, "conv4": 1, "bn4": 1, "fc8": 0}.items():
        assert found[f"spatial.{layer}.weight"] == found[f"spatial.{layer}.bias"] == 0.5**above, layer


def test_a_residual_unit_is_one_layer() -> None:
    found = rates(built(residual("st_resnet")))
    assert found["spatial.res5c.branch2a.weight"] == found["spatial.res5c.bn2c.bias"] == 0.5
    assert found["temporal.res5b.branch2a.conv.weight"] == 0.25
    assert found["spatial.conv1.weight"] == 0.5**17


def test_a_tower_that_ends_at_the_fusion_goes_on_in_the_other_one() -> None:
    found = rates(built(fused_model(layers=("relu2", "relu3"), keep=False)))
    for layer, above in {"conv1": 4, "conv2": 3, "conv3": 2}.items():
        assert found[f"spatial.{layer}.weight"] == found[f"temporal.{layer}.weight"] == 0.5**above, layer
    assert found["fusions.relu3.mix.weight"] == found["spatial.fc8.weight"] == 1


@pytest.mark.parametrize("config", [fused_model(method="bilinear"), residual("stfn", tower=SMALL)])
def test_a_classifier_over_both_towers_is_above_them(config: ModelConfig) -> None:
    found = rates(built(config))
    assert found["spatial.conv4.weight"] == 0.5
    assert all(rate == 1 for name, rate in found.items() if not name.startswith(("spatial.", "temporal.")))


def test_frozen_layers_do_not_count() -> None:
    network = built(late(replace(SMALL, frozen_through="relu3"), streams="spatial"))
    assert rates(network) == {
        **{f"spatial.{layer}.{kind}": 0.5 for layer in ("conv4", "bn4") for kind in ("weight", "bias")},
        **{f"spatial.fc8.{kind}": 1.0 for kind in ("weight", "bias")},
    }


def test_without_layer_decay_all_layers_learn_at_one_rate() -> None:
    assert set(rates(built(late(RESNET)), layer_decay=None).values()) == {1.0}
    assert rates(built(late()), layer_decay=1.0) == rates(built(late()), layer_decay=None)


def test_a_network_without_towers_has_no_layer_decay() -> None:
    network = Network()
    network.head = nn.Linear(2, 2)
    assert network.parameter_groups(lr=1.0, weight_decay=0.0)
    with pytest.raises(ConfigError, match=r"training\.layer_decay needs a network of towers"):
        network.parameter_groups(lr=1.0, weight_decay=0.0, layer_decay=0.5)


class Tokens(nn.Module):
    """What a vision transformer learns beside its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.patches = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.gamma = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize("bias_lr_factor", [1.0, 2.0])
def test_norms_of_any_kind_learned_scales_and_position_embeddings_do_not_decay(bias_lr_factor: float) -> None:
    tower = Tower({"stem": Tokens(), "fc8": FullyConnected(4, 3, classifies=True)}, channels={"stem": 4, "fc8": 3})
    tower.undecayed = frozenset({"stem.pos_embed"})
    network = LateNetwork(
        ModelConfig(architecture="late", streams="spatial", spatial=TowerConfig(backbone="vgg_small")),
        spatial_tower=lambda: tower,
        temporal_tower=lambda: tower,
    )
    groups = parameter_groups(network, lr=1.0, weight_decay=0.1, bias_lr_factor=bias_lr_factor)
    names = {id(parameter): name for name, parameter in tower.named_parameters()}
    found = {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    biases = {"stem.patches.bias", "fc8.bias", "stem.norm.weight"}
    others = {"stem.pos_embed", "stem.gamma", "stem.norm.bias"}
    expected = {"weights": {"stem.patches.weight", "fc8.weight"}}
    expected |= (
        {"biases": biases, "without decay": others} if bias_lr_factor == 2 else {"without decay": biases | others}
    )
    assert found == expected


@pytest.mark.parametrize("name", ["test_convnext", "test_vit2", "test_resnet", "test_efficientnet"])
def test_weights_of_a_network_of_timm_decay_where_timm_decays_them(name: str) -> None:
    optim = pytest.importorskip("timm.optim")
    theirs = pytest.importorskip("timm").create_model(name, num_classes=5)
    named = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    groups = optim.param_groups_weight_decay(theirs, 0.1, no_weight_decay_list=named)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    wanted = {names[id(one)] for group in groups if group["weight_decay"] for one in group["params"]}
    network = built(late(TowerConfig(backbone=f"timm:{name}", dropout=0.0), streams="spatial"))
    tower: Any = network.get_submodule("spatial")
    own = {id(parameter): name for name, parameter in tower.named_parameters()}
    for layer_decay in (None, 0.5):
        groups = network.parameter_groups(lr=1.0, weight_decay=0.1, bias_lr_factor=1.0, layer_decay=layer_decay)
        found = {own[id(one)] for group in groups if group["weight_decay"] for one in group["params"]}
        assert {tower.published.get(name, name) for name in found} == wanted


def test_a_stage_of_timm_is_a_layer_and_so_is_a_transformer_s_block() -> None:
    convnext, vit = (
        rates(built(late(TowerConfig(backbone=f"timm:{name}", dropout=0.0), streams="spatial")))
        for name in ("test_convnext", "test_vit2")
    )
    layers = {"stem.0.weight": 5, "stages_0.blocks.0.gamma": 4, "stages_3.downsample.1.weight": 1, "fc8.bias": 0}
    for name, above in layers.items():
        assert convnext[f"spatial.{name}"] == 0.5**above, name
    tokens = {"stem.network.pos_embed": 9, "stem.network.reg_token": 9, "blocks_7.block.attn.qkv.weight": 1}
    for name, above in tokens.items():
        assert vit[f"spatial.{name}"] == 0.5**above, name
