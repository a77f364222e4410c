import re
from pathlib import Path

import pytest
import torch
from noise_shards import noise_shards

from twostream_ray.cli import main
from twostream_ray.data.shards.shards import open_shards
from twostream_ray.errors import ConfigError
from twostream_ray.models.description import training_flops
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings, refuse_dry_run
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.train import plan
from twostream_ray.runs.train.run import build_on_meta_device, train
from twostream_ray.settings.parser import from_arguments

SETTINGS = [
    *("--name", "looked-at", "--model.architecture", "late", "--training.epochs", "3", "--training.global_batch", "8"),
    *("--model.spatial.backbone", "vgg_small", "--model.temporal.backbone", "vgg_small"),
    *("--data.sampling.flow_length", "2", "--data.transforms.crop_px", "16", "--data.validation_split", "val"),
]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a small training, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    noise_shards("shards", rows=(8, 9), num_fields=3, splits=("train", "val", "test"))
    return [*SETTINGS, "--data.shards", "shards", "--tracking.uri", "sqlite:///kept.db"]


def test_a_dry_run_says_what_would_be_trained_and_starts_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *arguments, "--dry_run", "true"]) == 0
    said = capsys.readouterr().out
    assert "17 to train (train), 17 to validate (val), 17 to test (test); 1 classes" in said
    assert "3 epochs of 3 steps of 8 clips" in said and "vgg_small and vgg_small" in said
    assert f"sqlite:///{tmp_path}/kept.db, experiment twostream" in said and f"{tmp_path}/runs/looked-at" in said
    assert "MiB per worker" in said and "starting Ray" not in said
    assert re.search(r"time +at least [\d.]+ s: [\d.e-]+ TFLOP at [\d.]+ TFLOP/s", said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_a_dry_run_of_three_stages_says_what_the_first_two_train(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    of_stages = ("--stages.enabled", "true", "--stages.temporal", "{epochs: 7}", "--model.architecture", "fused")
    assert main(["train", *arguments, *of_stages, "--model.fusion.layers", "relu3", "--dry_run", "true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "stage 1 of 3: run looked-at-spatial, the spatial stream alone, 3 epochs" in lines
    assert "stage 2 of 3: run looked-at-temporal, the temporal stream alone, 7 epochs" in lines


def test_a_floor_of_the_time_is_the_arithmetic_of_all_steps_at_the_matrix_rate(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "matrix_rate", lambda device, *, precision: 1e6)
    config = from_arguments(ExperimentConfig, arguments, prog="train")
    shards = open_shards("shards")
    floor = dict(plan.plan_training(config, shards, folder=RunFolder.of(config)).rows)["time"]
    _, network = build_on_meta_device(config, shards)
    flops = training_flops(network, flow_length=2, num_snippets=config.data.sampling.num_snippets, size_px=16)
    assert floor.startswith(f"at least {plan._duration(flops * 17 * 3 / 1e6)}: ")
    assert [plan._duration(seconds) for seconds in (3.14, 600, 9_000, 400_000)] == [
        "3.1 s",
        "10.0 min",
        "2.5 h",
        "4.6 days",
    ]


def test_a_plan_says_how_fast_layers_learn_and_what_the_optimiser_keeps(arguments: list[str]) -> None:
    def rows(*settings: str) -> dict[str, str]:
        config = from_arguments(ExperimentConfig, [*arguments, *settings], prog="train")
        return dict(plan.plan_training(config, open_shards("shards"), folder=RunFolder.of(config)).rows)

    papers, modern = rows(), rows("--training.optimiser", "adamw", "--training.layer_decay", "0.5")
    assert papers["optimiser"].startswith(
        "SGD with momentum 0.9, learning rate 0.001, for biases 0.002; weight decay 0.0005 on "
    )
    assert modern["optimiser"].startswith(
        "AdamW, learning rate 0.001, layer decay 0.5, down to 6.3e-05 in the first layers; weight decay 0.0005 on "
    )
    assert "gradients and momentum, " in papers["memory"] and "gradients and two moments, " in modern["memory"]


def test_a_dry_run_of_a_search_says_its_trials_too(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    search = ("--search.space", "{seed: [0, 1]}", "--search.trials", "2")
    assert main(["tune", *arguments, *search, "--dry_run", "true"]) == 0
    said = capsys.readouterr().out
    assert "at most 2 trials" in said and "3 epochs of 3 steps" in said and "starting Ray" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_torch_built_for_gpus_that_sees_none_warns(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, notes in ((None, 0), ("13.2", 1)):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert len(plan._notes(joined=False)) == notes
        assert not plan._notes(joined=True)


def test_a_look_binds_a_run_to_nothing_and_no_function_trains_by_it(arguments: list[str]) -> None:
    config = from_arguments(ExperimentConfig, [*arguments, "--dry_run", "true"], prog="train")
    with pytest.raises(ConfigError, match="dry_run works with"):
        train(config)
    with pytest.raises(ConfigError, match="dry_run works with"):
        refuse_dry_run(config)
    assert "dry_run" not in fixed_settings(config)
    assert not RunFolder.of(config).has_checkpoint()


def test_a_search_need_not_make_a_training_of_the_settings_beside_its_space(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    space = ("--search.space", "{training.global_batch: [8, 16]}", "--search.trials", "2", "--dry_run", "true")
    assert main(["tune", *arguments, "--training.global_batch", "9", *space]) == 0
    assert "are not valid by themselves" in capsys.readouterr().out
    other = ("--search.space", "{seed: [0, 1]}", "--dry_run", "true")
    assert main(["tune", *arguments, "--training.global_batch", "9", *other]) == 2
    assert "global_batch must be a multiple of data.lanes (8), got 9" in capsys.readouterr().err
