import pytest

from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig
from twostream_ray.runs.benchmark.step import benchmark_step


def test_a_training_step_is_timed_with_its_operations() -> None:
    tower = TowerConfig(backbone="vgg_small", width=4)
    model = ModelConfig(architecture="late", spatial=tower, temporal=tower)
    speed = benchmark_step(BenchmarkStepConfig(model=model, size_px=32, batch=2, num_snippets=1, steps=2))
    assert speed.samples_per_second == pytest.approx(2 / speed.seconds)
    assert 0 < speed.teraflops_per_second < 10 and 0.1 < speed.peak_gigabytes < 24
