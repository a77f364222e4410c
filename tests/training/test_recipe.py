import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.training.recipe import (
    balanced_class_weights,
    build_optimiser,
    continued_schedule,
    learning_rate_at,
    lost_patience,
    set_learning_rate,
    total_loss,
    tower_losses,
    within_own_head,
)
from twostream_ray.training.settings import TrainingConfig


def small_network() -> Network:
    tower = TowerConfig(backbone="vgg_small", width=4)
    model = ModelConfig(architecture="late", spatial=tower, temporal=tower)
    return build_network(model, num_classes=3, flow_length=2)


def test_more_epochs_move_the_learning_rate_of_a_cosine_alone() -> None:
    for schedule in ("constant", "steps", "cosine"):
        short, long = (TrainingConfig(epochs=epochs, schedule=schedule, step_epochs=(3, 9)) for epochs in (6, 12))
        same = all(learning_rate_at(epoch, config=short) == learning_rate_at(epoch, config=long) for epoch in range(6))
        assert same == (schedule != "cosine")
    assert "continues at 0.0001, by training.schedule=steps" in continued_schedule(
        6, config=TrainingConfig(epochs=12, step_epochs=(3, 9))
    )
    assert continued_schedule(6, config=long) == (
        "the learning rate continues at 0.0005, on a cosine over all 12 epochs, after it had reached 0"
    )


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
    bias, weight = network.spatial.conv1.bias, network.spatial.conv1.weight
    assert (by_parameter[id(bias)]["lr"], by_parameter[id(bias)]["weight_decay"]) == (pytest.approx(0.1), 0)
    assert (by_parameter[id(weight)]["lr"], by_parameter[id(weight)]["weight_decay"]) == (pytest.approx(0.05), 0.01)


def papers_sgd(network: Network, *, lr: float, weight_decay: float, momentum: float) -> torch.optim.SGD:
    """The papers' rules written out: biases and scales at twice the rate, decay on weights alone."""
    named = list(network.named_parameters())
    shifts = [one for name, one in named if name.endswith("bias") and ".bn" in name]
    biases = [one for name, one in named if (name.endswith("bias") and ".bn" not in name) or name.endswith("bn.weight")]
    scales = [one for name, one in named if name.endswith("weight") and ".bn" in name]
    weights = [one for name, one in named if name.endswith("weight") and ".bn" not in name]
    groups = [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": biases + scales, "lr": 2 * lr, "weight_decay": 0.0},
        {"params": shifts, "lr": lr, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, momentum=momentum, fused=True)


def learnt(network: Network, optimiser: torch.optim.Optimizer, *, steps: int = 3) -> dict[str, Tensor]:
    """Weights after so many steps on noise."""
    for seed in range(steps):
        torch.manual_seed(seed)
        outputs = network(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 4, 32, 32))
        optimiser.zero_grad()
        sum(F.cross_entropy(logits, torch.tensor([0, 1])) for logits in outputs.values()).backward()
        optimiser.step()
    return dict(network.named_parameters())


def test_sgd_is_the_papers_to_the_last_bit() -> None:
    config = TrainingConfig(learning_rate=0.05, weight_decay=0.01, momentum=0.9)
    torch.manual_seed(0)
    network = small_network()
    written_out = copy.deepcopy(network)
    weights = learnt(network, build_optimiser(network, config=config))
    expected = learnt(written_out, papers_sgd(written_out, lr=0.05, weight_decay=0.01, momentum=0.9))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0, msg=name)


def test_adamw_is_torch_s_with_decay_on_weights_alone_and_one_rate() -> None:
    config = TrainingConfig(optimiser="adamw", learning_rate=0.01, weight_decay=0.1)
    torch.manual_seed(0)
    network = small_network()
    other = copy.deepcopy(network)
    decaying = [one for one in other.parameters() if one.dim() > 1]
    rest = [one for one in other.parameters() if one.dim() < 2]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    weights = learnt(network, build_optimiser(network, config=config))
    expected = learnt(other, torch.optim.AdamW(groups, lr=0.01, fused=True))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0, msg=name)


def test_layers_keep_their_share_of_the_rate_through_the_schedule() -> None:
    network = small_network()
    optimiser = build_optimiser(network, config=TrainingConfig(optimiser="adamw", learning_rate=0.1, layer_decay=0.5))
    set_learning_rate(optimiser, 0.02)
    rate = {id(one): group["lr"] for group in optimiser.param_groups for one in group["params"]}
    tower = network.spatial
    assert rate[id(tower.fc8.weight)] == pytest.approx(0.02)
    assert rate[id(tower.conv1.weight)] == rate[id(tower.bn1.bias)] == pytest.approx(0.02 / 16)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optimiser", "adam"), ("schedule", "linear"), ("class_weights", "even"), ("on_nonfinite", "wait")],
)
def test_a_choice_that_there_is_not_is_refused_by_name(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{setting} must be one of .*, got '{value}'"):
        TrainingConfig(**{setting: value})


def test_padding_counts_in_no_loss() -> None:
    logits = torch.randn(3, 4)
    labels = torch.tensor([0, 1, 2])
    padded = tower_losses({"fused": logits}, labels, weights=torch.tensor([1.0, 1.0, 0.0]), head_classes=(4,))["fused"]
    alone = tower_losses({"fused": logits[:2]}, labels[:2], weights=torch.ones(2), head_classes=(4,))["fused"]
    torch.testing.assert_close(padded, alone)


def test_with_two_data_sets_the_loss_is_the_sum_of_theirs_each_over_its_own_classes() -> None:
    logits = torch.randn(5, 7)
    labels = torch.tensor([0, 5, 2, 3, 6])  # classes 0..2 are the first data set's, 3..6 the second's
    both = tower_losses({"temporal": logits}, labels, weights=torch.ones(5), head_classes=(3, 4))["temporal"]
    first = F.cross_entropy(logits[[0, 2], :3], torch.tensor([0, 2]), reduction="sum")
    second = F.cross_entropy(logits[[1, 3, 4], 3:], torch.tensor([2, 0, 3]), reduction="sum")
    torch.testing.assert_close(both, first + second)


def test_a_data_set_absent_from_the_batch_has_gradients_of_zero_not_none() -> None:
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    model = ModelConfig(architecture="late", streams="temporal", temporal=tower, head_classes=(3, 4))
    network = build_network(model, num_classes=7, flow_length=2)
    outputs = network(None, torch.randn(2, 1, 4, 32, 32))
    labels = torch.tensor([1, 2])
    tower_losses(outputs, labels, weights=torch.ones(2), head_classes=network.head_classes)["temporal"].backward()
    gradient = network.get_parameter("temporal.fc8.weight").grad
    assert gradient is not None and gradient.isfinite().all()
    assert gradient[:3].any() and not gradient[3:].any()


def test_a_sample_is_right_when_it_is_right_among_its_own_data_sets_classes() -> None:
    scores = torch.tensor([[0.1, 0.9, 5.0, 4.0], [9.0, 8.0, 0.1, 0.2]])
    labels = torch.tensor([1, 3])
    assert within_own_head(scores, labels, head_classes=(2, 2)).argmax(dim=1).tolist() == [1, 3]
    assert within_own_head(scores, labels, head_classes=(4,)).argmax(dim=1).tolist() == [2, 0]


def test_frozen_parameters_are_neither_stepped_nor_decayed() -> None:
    tower = TowerConfig(backbone="vgg_small", width=4, dropout=0)
    fusion = FusionConfig(layers=("relu3",), temporal="pool2d")
    model = ModelConfig(spatial=tower, temporal=tower, fusion=fusion, freeze_below_fusion=True)
    network = build_network(model, num_classes=3, flow_length=2).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = build_optimiser(network, config=TrainingConfig(learning_rate=0.1, weight_decay=0.1))
    outputs = network(torch.randn(2, 1, 3, 32, 32), torch.randn(2, 1, 4, 32, 32))
    sum(logits.square().sum() for logits in outputs.values()).backward()
    optimiser.step()
    below = tuple(
        f"{stream}.{layer}{n}" for stream in ("spatial", "temporal") for layer in ("conv", "bn") for n in "123"
    )
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[name]) == name.startswith(below), name


def test_the_temporal_loss_is_weighted_only_beside_another() -> None:
    config = TrainingConfig(temporal_loss_weight=0.25)
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert total_loss({"fused": one, "temporal": two}, config=config) == 1.5
    assert total_loss({"temporal": two}, config=config) == 2


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"training.epochs must be at least 1, got 0"):
        TrainingConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"training.momentum must be in \[0, 1\), got 1"):
        TrainingConfig(momentum=1.0)
    with pytest.raises(ConfigError, match=r"training.precision must be one of auto, float32, bfloat16, got 'float16'"):
        TrainingConfig(precision="float16")


def test_label_smoothing_spreads_over_the_classes_of_the_samples_own_data_set() -> None:
    logits = torch.randn(4, 5)
    labels = torch.tensor([0, 2, 1, 4])
    weights = torch.ones(4)
    plain = tower_losses({"fused": logits}, labels, weights=weights, head_classes=(5,), label_smoothing=0.1)["fused"]
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1))
    two = tower_losses({"fused": logits}, labels, weights=weights, head_classes=(3, 2), label_smoothing=0.1)["fused"]
    first, second = labels < 3, labels >= 3
    expected = F.cross_entropy(logits[first, :3], labels[first], reduction="sum", label_smoothing=0.1)
    expected += F.cross_entropy(logits[second, 3:], labels[second] - 3, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(two, expected)


def test_balanced_class_weights_make_every_class_count_the_same_and_a_clip_1_on_average() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2] * 1 + [4] * 5)
    weights = balanced_class_weights(labels, head_classes=(3, 2))
    counted = torch.bincount(torch.from_numpy(labels), weights=weights[labels].double(), minlength=5)
    torch.testing.assert_close(counted, torch.tensor([10 / 3, 10 / 3, 10 / 3, 0, 5], dtype=torch.float64))
    assert weights[labels].mean().item() == pytest.approx(1)


def test_class_weights_scale_the_loss_of_their_classes() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    losses = tower_losses(
        {"fused": logits},
        labels,
        weights=torch.ones(2),
        head_classes=(3,),
        class_weights=torch.tensor([2.0, 1.0, 0.5]),
    )
    single = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses["fused"], 2 * single[0] + 0.5 * single[1])


def test_patience_is_lost_when_validation_has_not_risen_for_so_many_epochs() -> None:
    config = TrainingConfig(patience_epochs=2)
    scores = [0.1, 0.3, 0.2, 0.3, 0.4]
    histories = [[{"val_top1": score} for score in scores[:length]] for length in range(len(scores) + 1)]
    assert [lost_patience(history, config=config) for history in histories] == [False] * 4 + [True, False]
    assert not lost_patience(histories[4], config=TrainingConfig())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("label_smoothing", 1.0), ("average_decay", 1.0), ("patience_epochs", 0), ("micro_batches", 0)],
)
def test_a_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"training.{setting} must .* got {value}"):
        TrainingConfig(**{setting: value})
