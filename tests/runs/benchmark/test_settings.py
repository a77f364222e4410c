import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig


@pytest.mark.parametrize("name", ["size_px", "batch", "num_snippets", "steps", "num_classes"])
def test_numbers_that_measure_nothing_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        BenchmarkStepConfig(**{name: 0})
