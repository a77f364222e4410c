"""Mixup, against examples worked by hand (Zhang et al. 2018, eq. 1)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_shards import noise_shards
from torch.nn import functional as F

from twostream_ray.data.loading.device import DeviceBatch, normalise_flow, normalise_rgb, to_device
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.training import step as step_module
from twostream_ray.training.mixup import Mixture, draw_mixture, partners_in_lanes
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.training.step import TrainingStep

DEVICE = torch.device("cpu")


def levels(rgb: Sequence[int], flow: Sequence[int], *, labels: Sequence[int], weights: Sequence[float]) -> DeviceBatch:
    """Samples of one level each."""
    return DeviceBatch(
        rgb=torch.tensor(rgb, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 1, 3, 4, 4),
        flow=torch.tensor(flow, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 1, 4, 4, 4),
        labels=torch.tensor(labels),
        weights=torch.tensor(weights),
        clips=np.arange(len(labels)),
        total=float(sum(weights)),
    )


def noise(labels: Sequence[int], *, weights: Sequence[float] | None = None, size: int = 32) -> DeviceBatch:
    count = len(labels)
    generator = torch.Generator().manual_seed(3)
    return DeviceBatch(
        rgb=torch.randint(0, 256, (count, 1, 3, size, size), dtype=torch.uint8, generator=generator),
        flow=torch.randint(0, 256, (count, 1, 4, size, size), dtype=torch.uint8, generator=generator),
        labels=torch.tensor(labels),
        weights=torch.ones(count) if weights is None else torch.tensor(weights),
        clips=np.arange(count),
        total=float(count if weights is None else sum(weights)),
    )


def late_network(*, head_classes: tuple[int, ...] = ()) -> Network:
    """Without dropout and batch moments: its scores do not depend on how a batch is cut."""
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_m_2048", width=4, dropout=0.0)
    model = ModelConfig(architecture="late", spatial=tower, temporal=tower, head_classes=head_classes)
    return build_network(model, num_classes=sum(head_classes) or 3, flow_length=2)


def step_of(network: Network, **options: object) -> TrainingStep:
    names = ("class_weights", "clip_ids")
    settings = {name: value for name, value in options.items() if name not in names}
    config = TrainingConfig(learning_rate=0.01, schedule="constant", **settings)
    given = {name: options[name] for name in names if name in options}
    optimiser = build_optimiser(network, config=config)
    return TrainingStep(network, optimiser, config=config, seed=0, device=DEVICE, **given)


def mixed_by(monkeypatch: pytest.MonkeyPatch, *, partners: Sequence[int], shares: Sequence[float]) -> None:
    """Steps mix as an example says."""

    def draw(batch: DeviceBatch, **_: object) -> Mixture:
        return Mixture(batch=batch, partners=torch.tensor(partners), shares=torch.tensor(shares))

    monkeypatch.setattr(step_module, "draw_mixture", draw)


def test_rgb_and_flow_of_a_sample_have_the_same_partner_and_the_same_share() -> None:
    batch = levels([200, 40, 100], [128, 28, 228], labels=[0, 1, 2], weights=[1, 1, 1])
    mixture = Mixture(batch=batch, partners=torch.tensor([1, 2, 0]), shares=torch.tensor([0.75, 0.5, 1.0]))
    mixed, (own, partners) = mixture.part(slice(0, 3))
    assert mixed.rgb is not None and mixed.flow is not None
    assert mixed.rgb[:, 0, 0, 0, 0].tolist() == [0.75 * 200 + 0.25 * 40, 0.5 * 40 + 0.5 * 100, 100]
    assert mixed.flow[:, 0, 3, 0, 0].tolist() == [0.75 * 128 + 0.25 * 28, 0.5 * 28 + 0.5 * 228, 228]
    assert (own.labels.tolist(), partners.labels.tolist()) == ([0, 1, 2], [1, 2, 0])
    assert (own.weights.tolist(), partners.weights.tolist()) == ([0.75, 0.5, 1], [0.25, 0.5, 0])


def test_mixing_levels_is_mixing_what_networks_take() -> None:
    batch = noise([0, 1])
    mixture = Mixture(batch=batch, partners=torch.tensor([1, 0]), shares=torch.tensor([0.7, 0.4]))
    rgb, flow = mixture.part(slice(0, 2))[0].streams()
    own, other = (normalise_rgb(batch.rgb[order]) for order in ([0, 1], [1, 0]))
    share = torch.tensor([0.7, 0.4])[:, None, None, None, None]
    torch.testing.assert_close(rgb, share * own + (1 - share) * other, rtol=1e-5, atol=1e-5)
    own, other = (normalise_flow(batch.flow[order]) for order in ([0, 1], [1, 0]))
    torch.testing.assert_close(flow, share * own + (1 - share) * other, rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_both_labels_by_their_shares_smoothed_weighted_each_in_its_own_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two data sets of 3 and 2 classes; the last sample is padding."""
    network = late_network(head_classes=(3, 2)).eval()
    batch = noise([0, 4, 2, 1], weights=[1, 1, 1, 0], size=224)
    partners, shares = [1, 2, 0, 0], [0.75, 0.25, 0.5, 0.5]
    class_weights = torch.tensor([2.0, 1.0, 0.5, 1.0, 3.0])
    mixed_by(monkeypatch, partners=partners, shares=shares)
    rgb, flow = (
        Mixture(batch=batch, partners=torch.tensor(partners), shares=torch.tensor(shares))
        .part(slice(0, 4))[0]
        .streams()
    )
    with torch.no_grad():
        outputs = network(rgb, flow)

    def loss_of(logits: torch.Tensor, sample: int, label: int) -> torch.Tensor:
        head, first = (slice(0, 3), 0) if label < 3 else (slice(3, 5), 3)
        one = F.cross_entropy(logits[sample, head], torch.tensor(label - first), label_smoothing=0.1)
        return class_weights[label] * one

    step = step_of(network, mixup_alpha=0.4, label_smoothing=0.1, class_weights=class_weights)
    outcome = step(batch, epoch=0, step=0, num_steps=1)
    assert set(outcome.losses) == {"spatial", "temporal"}
    for tower, logits in outputs.items():
        expected = (
            0.75 * loss_of(logits, 0, 0)
            + 0.25 * loss_of(logits, 0, 4)
            + 0.25 * loss_of(logits, 1, 4)
            + 0.75 * loss_of(logits, 1, 2)
            + 0.5 * loss_of(logits, 2, 2)
            + 0.5 * loss_of(logits, 2, 0)
        )
        torch.testing.assert_close(outcome.losses[tower], expected)


def test_a_right_answer_counts_the_share_of_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    network = late_network()
    for stream in ("spatial", "temporal"):
        classifier = network.get_submodule(f"{stream}.fc8")
        torch.nn.init.zeros_(classifier.weight)
        classifier.bias.data = torch.tensor([0.0, 9.0, 0.0])  # every answer is class 1
    mixed_by(monkeypatch, partners=[1, 2, 0], shares=[0.75, 0.5, 0.625])
    batch = noise([0, 1, 1], size=224)
    outcome = step_of(network, mixup_alpha=0.4)(batch, epoch=0, step=0, num_steps=1)
    # Sample 0: its partner's label, 0.25. Sample 1: both labels. Sample 2: its own, 0.625.
    assert {name: hits.item() for name, hits in outcome.hits.items()} == dict.fromkeys(
        ("network", "spatial", "temporal"), 0.25 + 1 + 0.625
    )


def test_a_batch_in_parts_has_the_same_partners_and_gives_the_weights_of_the_whole() -> None:
    weights, losses = [], []
    for parts in (1, 3):
        network = late_network()
        step = step_of(network, mixup_alpha=1.0, micro_batches=parts)
        for number in range(2):
            outcome = step(noise([0, 1, 2, 1, 0], size=224), epoch=0, step=number, num_steps=2)
        weights.append(list(network.parameters()))
        losses.append(outcome.loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_padding_is_nobodys_partner() -> None:
    batch = noise([0, 1, 2], weights=[1, 0, 1])
    for epoch in range(20):
        mixture = draw_mixture(batch, alpha=1.0, seed=0, epoch=epoch)
        unmixed = mixture.shares == 1
        assert torch.equal(unmixed[[0, 2]], mixture.partners[[0, 2]] == 1)


def test_a_clip_has_the_same_partner_and_share_for_1_2_and_3_workers_and_others_in_another_epoch(
    tmp_path: Path,
) -> None:
    shard_set = noise_shards(str(tmp_path / "shards"), rows=(1, 16, 33), num_fields=4)
    sampling = SamplingConfig(num_snippets=1, flow_length=2, min_stride_frames=1, max_stride_frames=1, test_times=1)
    config = DataConfig(
        shards=shard_set.uri, lanes=4, decode_at="worker", sampling=sampling, transforms=TransformConfig(crop_px=16)
    )

    def drawn(world_size: int, epoch: int, first_step: int = 0) -> dict[int, tuple[int, float]]:
        """Clip -> its partner and share; every clip of 50, which 4 lanes and steps of 16 do not divide."""
        found: dict[int, tuple[int, float]] = {}
        for rank in range(world_size):
            loader = SnippetLoader(
                shard_set,
                config=config,
                passes=[Pass(split="train", epoch=epoch, training=True, first_step=first_step)],
                global_batch=16,
                rank=rank,
                world_size=world_size,
                want_rgb=False,
                through_ray=False,
            )
            for _, batches in loader:
                for batch in batches:
                    mixture = draw_mixture(
                        to_device(batch, DEVICE), alpha=0.4, seed=0, epoch=epoch, clip_ids=shard_set.clip_ids
                    )
                    partners = batch.clips[mixture.partners.numpy()].tolist()
                    pairs = zip(partners, mixture.shares.tolist(), strict=True)
                    found |= {
                        clip: pair
                        for clip, pair, weight in zip(batch.clips.tolist(), pairs, batch.weights, strict=True)
                        if weight
                    }
        return found

    alone = drawn(1, epoch=0)
    assert len(alone) == 50 and sum(clip != partner for clip, (partner, _) in alone.items()) >= 48
    assert alone == drawn(2, epoch=0) == drawn(3, epoch=0)
    assert alone != drawn(1, epoch=1)
    resumed = drawn(2, epoch=0, first_step=1)
    assert len(resumed) == 50 - 16 and resumed.items() <= alone.items()


def test_shares_are_from_beta_and_partners_are_the_others_of_a_lane_alike() -> None:
    clip_ids = [f"{number}.mp4" for number in range(2000)]
    lanes = np.repeat(np.arange(500), 4)
    partners, shares = partners_in_lanes(clip_ids, lanes=lanes, alpha=0.2, seed=1, epoch=0)
    assert np.array_equal(lanes[partners], lanes) and not (partners == np.arange(2000)).any()
    steps = (partners - np.arange(2000)) % 4  # 1, 2 or 3 places on within the lane, a third each
    assert np.bincount(steps, minlength=4)[1:] == pytest.approx([2000 / 3] * 3, rel=0.1)
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert (shares.mean(), shares.var()) == pytest.approx((0.5, 1 / (4 * 1.4)), rel=0.05)
    assert partners_in_lanes(["a"], lanes=np.array([7]), alpha=0.2, seed=1, epoch=0) == (np.array([0]), np.array([1]))


@pytest.mark.parametrize("alpha", [1e-9, 1000.0])
def test_shares_of_the_narrowest_and_widest_alpha_are_numbers_between_0_and_1(alpha: float) -> None:
    _, shares = partners_in_lanes([str(n) for n in range(100)], lanes=np.zeros(100, int), alpha=alpha, seed=0, epoch=0)
    assert ((shares >= 0) & (shares <= 1)).all()


def test_mixing_is_drawn_by_seed_epoch_and_clip_whatever_the_order_of_passes() -> None:
    def losses(epoch: int, **settings: object) -> tuple[float, ...]:
        batch = replace(noise([0, 1, 2, 0], size=224), total=4.0)
        step = step_of(late_network(), **settings)
        outcome = step(batch, epoch=epoch, step=0, num_steps=1)
        return tuple(loss.item() for loss in outcome.losses.values())

    assert losses(0, mixup_alpha=1.0) == losses(0, mixup_alpha=1.0)
    assert losses(0, mixup_alpha=1.0) != losses(1, mixup_alpha=1.0)
    assert losses(0, mixup_alpha=1.0) != losses(
        0, mixup_alpha=1.0, clip_ids=lambda clips: [f"other {clip}" for clip in clips]
    )
    assert losses(0) == losses(1)


def test_a_batch_that_no_lane_shares_is_refused_before_training() -> None:
    data = DataConfig(shards="shards", lanes=8)
    mixup = TrainingConfig(global_batch=8, mixup_alpha=0.2)
    with pytest.raises(ConfigError, match=r"global_batch must be at least 2 x data.lanes \(16\), got 8: use fewer"):
        ExperimentConfig(name="a", data=data, training=mixup)
    ExperimentConfig(name="a", data=data, training=replace(mixup, global_batch=16))
    ExperimentConfig(name="a", data=data, training=replace(mixup, mixup_alpha=None))
