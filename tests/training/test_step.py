from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twostream_ray.data.loading.device import to_device
from twostream_ray.data.snippets import Batch
from twostream_ray.errors import ConfigError, NonFiniteLossError
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.training.distributed import prepared
from twostream_ray.training.loop import CheckpointPlan, train_pass
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.running_metrics import PassResult
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.training.step import TrainingStep

DEVICE = torch.device("cpu")


def two_streams(*, dropout: float = 0.0, backbone: str = "vgg_m_2048", layer: str = "relu5") -> Network:
    """A fused network without batch normalisation, which would depend on how a batch is cut."""
    torch.manual_seed(0)
    tower = TowerConfig(backbone=backbone, width=4, dropout=dropout)
    fusion = FusionConfig(method="conv", layers=(layer,), temporal="pool2d")
    return build_network(ModelConfig(spatial=tower, temporal=tower, fusion=fusion), num_classes=3, flow_length=2)


def batch(num_samples: int, *, seed: int = 0, size: int = 224) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        rgb=rng.integers(0, 256, (num_samples, 1, 3, size, size), dtype=np.uint8),
        flow=rng.integers(0, 256, (num_samples, 1, 4, size, size), dtype=np.uint8),
        labels=rng.integers(0, 3, num_samples),
        weights=np.ones(num_samples, np.float32),
        clips=np.arange(num_samples) + 100 * seed,
        total=float(num_samples),
    )


def step_of(network: Network, *, model: nn.Module | None = None, **settings: object) -> TrainingStep:
    config = TrainingConfig(**{"learning_rate": 0.01, "schedule": "constant", **settings})
    prepared(network, config=config, device=DEVICE)
    return TrainingStep(model or network, build_optimiser(network, config=config), config=config, seed=0, device=DEVICE)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("distributed", [False, True])
def test_a_batch_in_parts_gives_the_weights_and_losses_of_the_whole(distributed: bool, process_group: None) -> None:
    outcomes, weights = [], []
    for parts in (1, 3):
        network = two_streams()
        model = DistributedDataParallel(network) if distributed else None
        step = step_of(network, model=model, micro_batches=parts)
        for number in range(2):
            outcome = step(to_device(batch(5, seed=number), DEVICE), epoch=0, step=number, num_steps=2)
        outcomes.append(outcome)
        weights.append(list(network.parameters()))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outcomes[0].loss, outcomes[1].loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outcomes[0].scores, outcomes[1].scores, rtol=1e-4, atol=1e-6)


def test_checkpointed_activations_give_the_same_weights_and_compute_the_layers_again() -> None:
    calls, weights = [], []
    for checkpointed in (False, True):
        network = two_streams(dropout=0.5)
        step = step_of(network, activation_checkpointing=checkpointed)
        counted: list[int] = []
        network.get_submodule("spatial.conv3").register_forward_hook(lambda *_, counted=counted: counted.append(1))
        step(to_device(batch(2), DEVICE), epoch=0, step=0, num_steps=1)
        calls.append(len(counted))
        weights.append(list(network.parameters()))
    assert calls == [1, 2]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_activations_of_towers_that_learn_batch_moments_are_not_checkpointed() -> None:
    network = two_streams(backbone="vgg_small", layer="relu3")
    with pytest.raises(ConfigError, match=r"set training.activation_checkpointing=false, or use training.micro_batch"):
        step_of(network, activation_checkpointing=True)


def poisoned(step: TrainingStep, *, at: int) -> TrainingStep:
    """Its network gives NaN for the step number `at`, counted from 0."""
    seen: list[int] = []

    def poison(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return output * float("nan") if len(seen) == at + 1 else output

    step.network.get_submodule("spatial.conv1").register_forward_hook(poison)
    return step


def test_a_loss_that_is_not_a_number_stops_training_and_names_the_clips() -> None:
    step = poisoned(step_of(two_streams()), at=1)
    with pytest.raises(NonFiniteLossError, match="the loss is nan in epoch 3, step 2") as caught:
        train_pass(step, iter([batch(2, seed=seed) for seed in range(4)]), epoch=2, num_steps=4)
    assert caught.value.clips == (100, 101)


def test_a_step_that_is_skipped_changes_no_weight_is_counted_and_counts_no_sample() -> None:
    step = poisoned(step_of(two_streams(), on_nonfinite="skip"), at=1)
    batches = [batch(2, seed=seed) for seed in range(3)]
    result = train_pass(step, iter(batches), epoch=0, num_steps=3)
    assert (result.skipped_steps, result.samples, len(result.step_losses)) == (1, 4, 2)
    without = step_of(two_streams(), on_nonfinite="skip")
    for number in (0, 2):
        without(to_device(batches[number], DEVICE), epoch=0, step=number, num_steps=3)
    torch.testing.assert_close(list(step.network.parameters()), list(without.network.parameters()), rtol=0, atol=0)


def test_a_pass_is_never_kept_behind_a_loss_that_is_not_finite() -> None:
    kept: list[int] = []
    plan = CheckpointPlan(save=lambda done, _: kept.append(done), every_steps=1)
    with pytest.raises(NonFiniteLossError):
        train_pass(poisoned(step_of(two_streams()), at=2), iter([batch(2)] * 5), epoch=0, num_steps=5, plan=plan)
    assert kept == [1, 2]


def test_a_pass_is_kept_at_regular_steps_and_a_step_after_it_was_wanted() -> None:
    wanted = iter([False, True, False, False, False, False])
    kept: list[tuple[int, PassResult]] = []
    plan = CheckpointPlan(save=lambda *at: kept.append(at), every_steps=4, requested=partial(next, wanted))
    result = train_pass(step_of(two_streams()), iter([batch(2)] * 6), epoch=0, num_steps=6, plan=plan)
    assert [done for done, _ in kept] == [3, 4]
    assert [so_far.samples for _, so_far in kept] == [6, 8]
    assert [so_far.step_losses for _, so_far in kept] == [result.step_losses[:3], result.step_losses[:4]]


def test_phases_are_timed_where_wanted() -> None:
    network = two_streams()
    config = TrainingConfig()
    seconds: dict[str, float] = {}
    step = TrainingStep(
        network, build_optimiser(network, config=config), config=config, seed=0, device=DEVICE, seconds=seconds
    )
    step(to_device(batch(1), DEVICE), epoch=0, step=0, num_steps=1)
    assert seconds.keys() == {"forward", "backward", "update"}
    assert min(seconds.values()) > 0


@pytest.mark.slow
def test_50_steps_give_the_same_losses_bit_for_bit_with_the_same_seed() -> None:
    losses = []
    for _ in range(2):
        network = two_streams(dropout=0.5, backbone="vgg_small", layer="relu3")
        batches = (replace(batch(4, seed=seed, size=32)) for seed in range(50))
        losses.append(train_pass(step_of(network), batches, epoch=0, num_steps=50).step_losses)
    assert losses[0] == losses[1] and len(set(losses[0])) == 50
