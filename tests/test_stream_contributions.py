import pytest
import torch
from small_networks import CONFIGS, built, fused_model, late, residual, snippets
from torch import nn

from twostream_ray.errors import CheckpointError
from twostream_ray.models.build import Network
from twostream_ray.models.settings import ModelConfig
from twostream_ray.stream_contributions import (
    Sample,
    StreamContributions,
    detached,
    mean_contributions,
    relative_logits,
    sample_of,
    shapley_contributions,
    stream_contributions,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def network_of(config: ModelConfig) -> Network:
    """With biases and moments as training leaves them, none of them zero."""
    network = built(config).eval()
    for module in network.modules():
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
    return network


def sample_for(network: Network, *, seed: int = 1) -> Sample:
    torch.manual_seed(seed)
    rgb, flow = snippets(num_samples=1)
    return Sample(rgb if network.needs_rgb else None, flow if network.needs_flow else None)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_contributions_of_every_architecture_add_up_to_the_logit_within_one_percent(config: ModelConfig) -> None:
    network = network_of(config)
    sample = sample_for(network)
    found = stream_contributions(network, sample, class_index=1)
    assert found.is_complete and found.gap <= 0.01
    assert found.logit == pytest.approx(float(relative_logits(network, sample, class_index=1).detach()), abs=1e-6)
    whole = found.baseline + sum(found.by_stream.values())
    assert whole == pytest.approx(found.logit, abs=0.011 * abs(found.logit - found.baseline))
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.by_stream) == set(sample.streams())


@pytest.mark.parametrize(
    "config",
    [
        late(),
        late(streams="temporal"),
        fused_model(method="sum"),
        fused_model(method="sum", layers=("fc8",), keep=False),
    ],
)
def test_late_fusion_and_sum_fusion_below_linear_layers_are_exact(config: ModelConfig) -> None:
    assert stream_contributions(network_of(config), sample_for(network_of(config)), class_index=0).method == "exact"


def test_a_stream_of_late_fusion_gives_half_of_its_own_towers_logit() -> None:
    network = network_of(late())
    sample = sample_for(network)
    streams = detached(sample)
    with torch.no_grad():
        shown, still = (
            network(streams["spatial"], flow)["temporal"][0] for flow in (streams["temporal"], 0 * streams["temporal"])
        )
    moved = (shown - shown.mean()) - (still - still.mean())
    found = stream_contributions(network, sample, class_index=2)
    assert found.by_stream["temporal"] == pytest.approx(float(moved[2]) / 2, abs=1e-6)


@pytest.mark.parametrize("config", [fused_model(method="conv", layers=("relu2",)), residual("st_resnet")])
def test_streams_that_meet_below_a_rectifier_get_integrated_gradients(config: ModelConfig) -> None:
    found = stream_contributions(network_of(config), sample_for(network_of(config)), class_index=0)
    assert found.method == "integrated gradients"


def test_a_class_is_held_against_the_classes_of_its_own_data_set() -> None:
    network = network_of(late(streams="spatial"))
    network.head_classes = (3, 2)
    sample = sample_for(network)
    with torch.no_grad():
        logits = network(*sample)["spatial"][0]
        assert float(relative_logits(network, sample, class_index=4)) == pytest.approx(
            float(logits[4] - logits[3:].mean()), abs=1e-6
        )
        assert float(relative_logits(network, sample, class_index=0)) == pytest.approx(
            float(logits[0] - logits[:3].mean()), abs=1e-6
        )


@pytest.mark.parametrize("config", CONFIGS)
def test_contributions_counted_from_other_clips_add_up_exactly(config: ModelConfig) -> None:
    network = network_of(config)
    sample, *references = (sample_for(network, seed=seed) for seed in range(3))
    found = shapley_contributions(network, sample, references, class_index=1)
    moved = found.logit - found.baseline
    assert sum(found.by_stream.values()) == pytest.approx(moved, abs=1e-4 * max(1, abs(found.logit)))
    assert found.method == "shapley" and set(found.by_stream) == set(sample.streams())


def test_a_stream_that_a_network_ignores_adds_nothing_from_other_clips() -> None:
    network = network_of(late())
    with torch.no_grad():
        network.get_parameter("temporal.fc8.weight").zero_()
    sample, other = sample_for(network), sample_for(network, seed=2)
    found = shapley_contributions(network, sample, [other], class_index=1)
    assert found.by_stream["temporal"] == pytest.approx(0, abs=1e-6) and found.by_stream["spatial"] != 0
    same = shapley_contributions(network, other, [other], class_index=1)
    assert same.by_stream == {"spatial": pytest.approx(0, abs=1e-6), "temporal": pytest.approx(0, abs=1e-6)}


def test_shares_are_of_what_moves_the_logit_up_or_down() -> None:
    found = StreamContributions(
        logit=2.0, baseline=0.0, by_stream={"spatial": 3.0, "temporal": -1.0}, method="exact", gap=0.0
    )
    assert found.shares == {"spatial": 0.75, "temporal": 0.25}


def test_a_logit_that_nothing_moves_has_no_shares() -> None:
    found = StreamContributions(logit=1.0, baseline=1.0, by_stream={"spatial": 0.0}, method="exact", gap=0.0)
    assert found.shares == {"spatial": 0.0}


def test_views_are_averaged_and_one_that_is_not_exact_is_said() -> None:
    parts = [
        StreamContributions(logit=2.0, baseline=0.0, by_stream={"spatial": 2.0}, method="exact", gap=0.0),
        StreamContributions(
            logit=4.0, baseline=0.0, by_stream={"spatial": 3.9}, method="integrated gradients", gap=0.025
        ),
    ]
    found = mean_contributions(parts)
    assert (found.logit, found.by_stream, found.method) == (3.0, {"spatial": 2.95}, "integrated gradients")
    assert found.gap == pytest.approx(0.05 / 3)
    assert not found.is_complete


def test_answers_that_are_no_numbers_are_refused() -> None:
    network = network_of(late(streams="spatial"))
    sample = sample_for(network)
    assert sample.rgb is not None
    with pytest.raises(CheckpointError, match="scores are not finite"):
        stream_contributions(network, sample_of({"spatial": sample.rgb * float("nan")}), class_index=0)
