import math

import pytest
import torch
from small_networks import built

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.models.description import training_flops
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig
from twostream_ray.runs.benchmark.step import StepFailure, StepSpeed, benchmark_step, default_ways, model_of

TOWER = TowerConfig(backbone="vgg_small", width=4)
LATE = ModelConfig(architecture="late", spatial=TOWER, temporal=TOWER)
FUSED = ModelConfig(
    spatial=TOWER, temporal=TOWER, fusion=FusionConfig(method="sum", layers=("relu4",), temporal="pool2d")
)


def config(model: ModelConfig, **settings: object) -> BenchmarkStepConfig:
    return BenchmarkStepConfig(**{"model": model, "size_px": 32, "batch": 2, "num_snippets": 1, "steps": 2} | settings)


@pytest.mark.slow
def test_training_steps_are_timed_with_their_operations() -> None:
    (speed,) = benchmark_step(config(FUSED, ways=("frozen",), flow_length=2, num_classes=5))
    assert isinstance(speed, StepSpeed) and (speed.way, speed.precision) == ("frozen", "float32")
    assert speed.samples_per_second == pytest.approx(2 / speed.seconds)
    assert 0 < speed.teraflops_per_second < 10 and 0.1 < speed.peak_gigabytes < 24
    assert 0 < speed.matrix_rate_share < 1 and math.isfinite(speed.loss) and speed.kernels == ""
    with torch.device("meta"):
        networks = [built(model_of(config(FUSED), way)) for way in ("frozen", "eager")]
    frozen, eager = (training_flops(one, flow_length=2, num_snippets=1, size_px=32) for one in networks)
    assert speed.teraflops_per_second * speed.seconds == pytest.approx(2 * frozen / 1e12)
    assert frozen < 0.6 * eager, "what is frozen has no backward pass"


@pytest.mark.slow
@pytest.mark.soak
def test_rows_come_with_the_largest_kernels_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    tower = ["--model.{}.backbone", "vgg_small", "--model.{}.width", "4"]
    towers = [part.format(stream) for stream in ("spatial", "temporal") for part in tower]
    sizes = ["--size_px", "32", "--num_snippets", "1", "--steps", "1", "--ways", "[channels_last]", "--profile", "true"]
    assert main(["benchmark", "step", "--model.architecture", "late", *towers, *sizes]) == 0
    shown = capsys.readouterr().out
    assert "channels_last" in shown and "of matrix rate" in shown and "aten::convolution_backward" in shown


@pytest.mark.slow
def test_a_way_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostream_ray.runs.benchmark.step._measure", math.factorial)
    (failed,) = benchmark_step(config(LATE))
    assert isinstance(failed, StepFailure) and failed.reason.startswith("TypeError")


def test_a_gpu_is_measured_every_way_that_the_network_has() -> None:
    assert default_ways(FUSED, on_gpu=True) == ("eager", "channels_last", "compiled", "frozen")
    assert default_ways(LATE, on_gpu=True) == ("eager", "channels_last", "compiled")
    assert default_ways(LATE, on_gpu=False) == ("eager",)


def test_what_cannot_be_measured_is_refused_before_anything_starts() -> None:
    with pytest.raises(
        ConfigError, match=r"ways must be some of eager, channels_last, compiled, frozen, got \['fast'\]"
    ):
        config(LATE, ways=("fast",))
    with pytest.raises(ConfigError, match=r"model.freeze_below_fusion goes with model.architecture=fused"):
        next(benchmark_step(config(LATE, ways=("frozen",))))
