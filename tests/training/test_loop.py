import numpy as np
import pytest
import torch

from twostream_ray.data.snippets import Batch
from twostream_ray.models.networks import ModelConfig, Network, build_network
from twostream_ray.models.streams import TowerConfig
from twostream_ray.training.loop import score_pass, train_pass
from twostream_ray.training.recipe import TrainingConfig, build_optimiser

DEVICE = torch.device("cpu")


def small_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    tower = TowerConfig(backbone="vgg_small", width=4, dropout=0.5)
    model = ModelConfig(architecture="late", streams="spatial", spatial=tower)
    return build_network(model, num_classes=2, flow_length=2)


def batch(num_samples: int, *, seed: int, padding: int = 0) -> Batch:
    """Dark pictures are class 0, bright ones class 1; padding is noise of weight 0."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples) % 2
    rgb = (rng.integers(0, 60, (num_samples, 1, 3, 32, 32)) + 150 * labels[:, None, None, None, None]).astype(np.uint8)
    if padding:
        rgb = np.concatenate([rgb, rng.integers(0, 256, (padding, 1, 3, 32, 32), dtype=np.uint8)])
        labels = np.concatenate([labels, np.zeros(padding, int)])
    weights = np.concatenate([np.ones(num_samples), np.zeros(padding)]).astype(np.float32)
    return Batch(
        rgb=rgb,
        flow=None,
        labels=labels.astype(np.int64),
        weights=weights,
        clips=np.arange(len(labels)),
        total=float(num_samples),
    )


def trained(network: Network, batches: list[Batch], *, seed: int = 0) -> tuple[float, ...]:
    config = TrainingConfig(learning_rate=0.05, schedule="constant")
    optimiser = build_optimiser(network, config=config)
    result = train_pass(
        network, optimiser, iter(batches), config=config, epoch=0, num_steps=len(batches), seed=seed, device=DEVICE
    )
    return result.step_losses


def test_training_lowers_the_loss_and_learns_bright_from_dark() -> None:
    network = small_network()
    losses = trained(network, [batch(16, seed=seed) for seed in range(12)])
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    result, scores = score_pass(network, iter([batch(16, seed=99)]), device=DEVICE)
    assert result.top1 == 1 and result.samples == 16 and len(scores) == 16


def test_the_same_seed_gives_the_same_losses_bit_for_bit_and_another_seed_other_dropout() -> None:
    batches = [batch(8, seed=seed) for seed in range(4)]
    first = trained(small_network(), batches)
    assert first == trained(small_network(), batches)
    assert first != trained(small_network(), batches, seed=1)


def test_padding_counts_in_neither_result_nor_scores() -> None:
    network = small_network()
    plain, scores = score_pass(network, iter([batch(6, seed=3)]), device=DEVICE)
    padded, padded_scores = score_pass(network, iter([batch(6, seed=3, padding=2)]), device=DEVICE)
    assert (padded.top1, padded.samples) == (plain.top1, plain.samples)
    assert padded.losses == pytest.approx(plain.losses)
    assert scores.keys() == padded_scores.keys()


def test_a_video_score_is_the_mean_of_its_views() -> None:
    network = small_network()
    views = batch(4, seed=5)
    together = Batch(
        rgb=views.rgb, flow=None, labels=views.labels, weights=views.weights, clips=np.array([7, 7, 8, 8]), total=4.0
    )
    _, separate = score_pass(network, iter([views]), device=DEVICE)
    _, joined = score_pass(network, iter([together]), device=DEVICE)
    np.testing.assert_allclose(joined[7], (separate[0] + separate[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(joined[8], (separate[2] + separate[3]) / 2, rtol=1e-6)


def test_scoring_leaves_the_network_as_it_is() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    score_pass(network, iter([batch(8, seed=1)]), device=DEVICE)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
