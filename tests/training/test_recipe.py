import pytest
import torch

from twostream_ray.errors import ConfigError
from twostream_ray.models.networks import ModelConfig, Network, build_network
from twostream_ray.models.streams import TowerConfig
from twostream_ray.training.recipe import (
    TrainingConfig,
    build_optimiser,
    learning_rate_at,
    set_learning_rate,
    total_loss,
    tower_losses,
)


def small_network() -> Network:
    tower = TowerConfig(backbone="vgg_small", width=4)
    model = ModelConfig(architecture="late", spatial=tower, temporal=tower)
    return build_network(model, num_classes=3, flow_length=2)


def test_steps_divide_by_ten_at_their_epochs() -> None:
    config = TrainingConfig(learning_rate=1.0, schedule="steps", step_epochs=(2, 4))
    rates = [learning_rate_at(epoch, config=config) for epoch in (0, 1.9, 2, 3, 4)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_cosine_falls_from_the_highest_rate_to_zero() -> None:
    config = TrainingConfig(learning_rate=1.0, schedule="cosine", epochs=10)
    assert [learning_rate_at(epoch, config=config) for epoch in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_warm_up_rises_linearly() -> None:
    config = TrainingConfig(learning_rate=1.0, schedule="constant", warmup_epochs=2)
    assert [learning_rate_at(epoch, config=config) for epoch in (0, 1, 2, 3)] == pytest.approx([0, 0.5, 1, 1])


def test_biases_keep_twice_the_rate_and_no_decay_through_the_schedule() -> None:
    network = small_network()
    optimiser = build_optimiser(network, config=TrainingConfig(learning_rate=0.1, weight_decay=0.01))
    set_learning_rate(optimiser, 0.05)
    by_parameter = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    bias, weight = network.spatial.conv1.bias, network.spatial.conv1.weight  # type: ignore[union-attr]
    assert (by_parameter[id(bias)]["lr"], by_parameter[id(bias)]["weight_decay"]) == (pytest.approx(0.1), 0)
    assert (by_parameter[id(weight)]["lr"], by_parameter[id(weight)]["weight_decay"]) == (pytest.approx(0.05), 0.01)


def test_padding_counts_in_no_loss() -> None:
    logits = torch.randn(3, 4)
    labels = torch.tensor([0, 1, 2])
    padded = tower_losses({"fused": logits}, labels, weights=torch.tensor([1.0, 1.0, 0.0]))["fused"]
    alone = tower_losses({"fused": logits[:2]}, labels[:2], weights=torch.ones(2))["fused"]
    torch.testing.assert_close(padded, alone)


def test_the_temporal_loss_is_weighted_only_beside_another() -> None:
    config = TrainingConfig(temporal_loss_weight=0.25)
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert total_loss({"fused": one, "temporal": two}, config=config) == 1.5
    assert total_loss({"temporal": two}, config=config) == 2


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"training.epochs must be at least 1, got 0"):
        TrainingConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"training.momentum must lie in \[0, 1\), got 1"):
        TrainingConfig(momentum=1.0)
