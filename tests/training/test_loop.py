from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_networks import built, late
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twostream_ray.data.loading.device import to_device
from twostream_ray.data.snippets import Batch
from twostream_ray.evaluation.report import report_on
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.training import loop
from twostream_ray.training.distributed import prepared
from twostream_ray.training.loop import score_pass, train_pass
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.training.step import TrainingStep

DEVICE = torch.device("cpu")


def small_network(seed: int = 0, *, head_classes: tuple[int, ...] = ()) -> Network:
    torch.manual_seed(seed)
    tower = TowerConfig(backbone="vgg_small", width=4, dropout=0.5)
    model = ModelConfig(architecture="late", streams="spatial", spatial=tower, head_classes=head_classes)
    return build_network(model, num_classes=sum(head_classes) or 2, flow_length=2)


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


def trained(
    network: Network, batches: list[Batch], *, seed: int = 0, model: nn.Module | None = None, **settings: object
) -> tuple[float, ...]:
    """Losses of the steps; `model` is what wraps the network."""
    config = TrainingConfig(learning_rate=0.05, schedule="constant", **settings)
    network = prepared(network, config=config, device=DEVICE)
    optimiser = build_optimiser(network, config=config)
    step = TrainingStep(model or network, optimiser, config=config, seed=seed, device=DEVICE)
    return train_pass(step, iter(batches), epoch=0, num_steps=len(batches)).step_losses


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone: DistributedDataParallel checks as it does among many."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


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


def test_the_top1_of_a_split_is_that_of_its_clips_whatever_the_batches_and_however_many_views_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = small_network(1)
    views = batch(30, seed=7)
    # Clips of 1 to 4 views, all of one class.
    clips = np.repeat(np.arange(12), [1, 2, 3, 4, 2, 3, 1, 4, 2, 3, 1, 4])
    views = replace(views, clips=clips, labels=(clips % 2).astype(np.int64))
    whole, scores = score_pass(network, iter([views]), device=DEVICE)
    stacked = np.stack([scores[clip] for clip in range(12)])
    report = report_on(stacked, np.arange(12) % 2, classes=("dark", "bright"), n_expected=12)
    assert (whole.top1, whole.clips, whole.samples) == (report.top1, 12, 30)
    _, of_views = score_pass(network, iter([replace(views, clips=np.arange(30))]), device=DEVICE)
    assert np.mean([of_views[view].argmax() == label for view, label in enumerate(views.labels)]) != whole.top1
    cut = [
        replace(views, rgb=views.rgb[part], labels=views.labels[part], weights=views.weights[part], clips=clips[part])
        for part in (slice(0, 8), slice(8, 9), slice(9, 30))
    ]
    monkeypatch.setattr(loop, "_VIEWS_AT_ONCE", 4)
    parts, of_parts = score_pass(network, iter(cut), device=DEVICE)
    assert (parts.top1, parts.clips, parts.samples) == (whole.top1, 12, 30)
    assert parts.losses == pytest.approx(whole.losses)
    np.testing.assert_allclose(np.stack([of_parts[clip] for clip in range(12)]), stacked, rtol=1e-5)


def test_each_tower_has_a_top1_of_its_own_in_training_and_in_scoring() -> None:
    network = built(late())
    rng = np.random.default_rng(0)
    flow = rng.integers(0, 256, (8, 1, 4, 32, 32), dtype=np.uint8)
    both = replace(batch(8, seed=0), flow=flow)
    scored, _ = score_pass(network, iter([both]), device=DEVICE)
    assert scored.tower_top1.keys() == {"spatial", "temporal"}
    network.eval()
    rgb, moved = to_device(both, DEVICE).streams()
    for tower, outputs in network(rgb, moved).items():
        expected = (outputs.argmax(dim=1).numpy() == both.labels).mean()
        assert scored.tower_top1[tower] == pytest.approx(expected)
    step = TrainingStep(
        network, build_optimiser(network, config=TrainingConfig()), config=TrainingConfig(), seed=0, device=DEVICE
    )
    result = train_pass(step, iter([both]), epoch=0, num_steps=1)
    assert result.tower_top1.keys() == {"spatial", "temporal"} and result.clips == 0
    halves = replace(result, samples=2, tower_top1={"spatial": 1.0, "temporal": 0.0}).after(
        replace(result, samples=6, tower_top1={"spatial": 0.5, "temporal": 1.0})
    )
    assert halves.tower_top1 == pytest.approx({"spatial": 0.625, "temporal": 0.75})
    assert result.after(replace(result, tower_top1={})).tower_top1 == {}, "a half that an earlier version stored"


def test_scoring_leaves_the_network_as_it_is() -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    score_pass(network, iter([batch(8, seed=1)]), device=DEVICE)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def of_two_sets(num_samples: int, *, seed: int, second: bool) -> Batch:
    """Bright from dark as classes 0 and 1 of the first data set, or 2 and 3 of the second."""
    plain = batch(num_samples, seed=seed)
    return replace(plain, labels=plain.labels + 2 * second)


def test_two_data_sets_are_learnt_together_each_by_its_own_head() -> None:
    network = small_network(head_classes=(2, 2))
    trained(network, [of_two_sets(16, seed=seed, second=bool(seed % 2)) for seed in range(24)])
    for second in (False, True):
        result, scores = score_pass(network, iter([of_two_sets(16, seed=99, second=second)]), device=DEVICE)
        assert result.top1 == 1
        assert all(score.shape == (4,) for score in scores.values())


def test_a_data_set_absent_from_a_batch_does_not_stop_distributed_training(process_group: None) -> None:
    network = small_network(head_classes=(2, 2))
    batches = [of_two_sets(8, seed=seed, second=seed > 1) for seed in range(4)]
    losses = trained(network, batches, model=DistributedDataParallel(network))
    assert losses == pytest.approx(trained(small_network(head_classes=(2, 2)), batches), rel=1e-5)


def test_frozen_towers_do_not_stop_distributed_training(process_group: None) -> None:
    tower = TowerConfig(backbone="vgg_small", width=4, dropout=0)
    fusion = FusionConfig(layers=("relu3",), temporal="pool2d")
    model = ModelConfig(spatial=tower, temporal=tower, fusion=fusion, freeze_below_fusion=True)
    network = build_network(model, num_classes=2, flow_length=2)
    frozen = network.get_parameter("spatial.conv3.weight").clone()
    free = network.get_parameter("spatial.conv4.weight").clone()
    flow = np.random.default_rng(0).integers(0, 256, (8, 1, 4, 32, 32), dtype=np.uint8)
    trained(
        network,
        [replace(batch(8, seed=seed), flow=flow) for seed in range(3)],
        model=DistributedDataParallel(network),
        clip_gradient_norm=1.0,
    )
    assert torch.equal(network.get_parameter("spatial.conv3.weight"), frozen)
    assert not torch.equal(network.get_parameter("spatial.conv4.weight"), free)


def test_bfloat16_computes_in_16_bits_and_keeps_weights_and_losses_in_32() -> None:
    batches = [batch(8, seed=seed) for seed in range(4)]
    seen: list[torch.dtype] = []
    network = small_network()
    network.get_submodule("spatial.conv2").register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    losses = trained(network, batches, precision="bfloat16")
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    exact = trained(small_network(), batches)
    assert losses == pytest.approx(exact, rel=0.05) and losses != exact
    _, scores = score_pass(network, iter(batches[:1]), device=DEVICE, precision="bfloat16")
    assert {score.dtype for score in scores.values()} == {np.dtype(np.float32)}


def test_channels_last_changes_the_layout_of_training_and_not_its_losses() -> None:
    batches = [batch(8, seed=seed) for seed in range(3)]
    network = small_network()
    losses = trained(network, batches, channels_last=True)
    weight = network.get_parameter("spatial.conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert losses == pytest.approx(trained(small_network(), batches), rel=1e-4)


@pytest.mark.slow
def test_a_compiled_network_trains_as_an_eager_one_under_the_same_names() -> None:
    batches = [batch(8, seed=seed) for seed in range(3)]
    tower = TowerConfig(backbone="vgg_small", width=4, dropout=0)  # compiled dropout draws other numbers
    model = ModelConfig(architecture="late", streams="spatial", spatial=tower)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(build_network(model, num_classes=2, flow_length=2))
    compiled, eager = networks
    names = list(compiled.state_dict())
    # aot_eager traces forward and backward as inductor does, without its minutes of C++.
    compiled.compile = partial(compiled.compile, backend="aot_eager")  # type: ignore[method-assign]
    torch._dynamo.utils.counters.clear()
    losses = trained(compiled, batches, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert list(compiled.state_dict()) == names
    assert losses == pytest.approx(trained(eager, batches), rel=1e-3)
