from typing import Any

import pytest

from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.training.step_memory import StepMemory, step_memory

TOWER = TowerConfig(backbone="vgg_small", width=16)
MODEL = ModelConfig(spatial=TOWER, temporal=TOWER, fusion=FusionConfig(method="conv", layers=("relu3",)))


def taken(samples: int = 8, *, workers: int = 1, **training: Any) -> StepMemory:
    settings = TrainingConfig(**{"precision": "float32", "channels_last": False, "compile": False} | training)
    return step_memory(
        MODEL,
        settings,
        num_classes=5,
        num_snippets=2,
        flow_length=4,
        size_px=64,
        samples=samples,
        workers=workers,
    )


@pytest.mark.slow
def test_activations_grow_with_the_samples_and_the_state_does_not() -> None:
    small, large = taken(8), taken(16)
    assert large.state == pytest.approx(small.state, rel=0.01) and small.gradients == large.gradients
    assert (large.peak - large.state) == pytest.approx(2 * (small.peak - small.state), rel=0.1)


@pytest.mark.slow
def test_what_saves_memory_is_seen_to_save_it() -> None:
    plain = taken(32)
    assert taken(32, micro_batches=4).peak < 0.5 * plain.peak
    assert taken(32, precision="bfloat16").peak < 0.9 * plain.peak


@pytest.mark.slow
def test_state_is_weights_gradients_and_moments_and_what_is_wanted_beside_them() -> None:
    plain = taken()
    assert plain.state == pytest.approx(3 * plain.gradients, rel=0.05)
    assert taken(optimiser="adamw").state == pytest.approx(plain.state + plain.gradients, rel=0.01)
    assert taken(average_decay=0.9).state == pytest.approx(plain.state + plain.gradients, rel=0.05)
    assert taken(workers=2).state == plain.state + plain.gradients


@pytest.mark.slow
def test_mixing_samples_takes_memory_for_a_moment_and_none_that_stays() -> None:
    plain, mixed = taken(), taken(mixup_alpha=0.2)
    assert mixed.state == pytest.approx(plain.state, rel=0.01) and plain.peak <= mixed.peak < 1.5 * plain.peak


@pytest.mark.soak
def test_the_2016_network_s_memory_is_what_an_h100_was_seen_to_hold() -> None:
    """docs/benchmarks.md: 48.9 GB for 96 samples in bfloat16, eager."""
    made = step_memory(
        ModelConfig(),
        TrainingConfig(precision="bfloat16", channels_last=False, compile=False),
        num_classes=101,
        num_snippets=5,
        flow_length=10,
        size_px=224,
        samples=96,
    )
    assert made.peak == pytest.approx(48.9e9, rel=0.03)
