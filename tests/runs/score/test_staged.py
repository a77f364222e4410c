import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from whole_shards import write_shards

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.score.staged import fused_config, stream_config, train_stages
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.stages import StageConfig, StagesConfig
from twostream_ray.runs.train.run import train
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking.connection import client_for

RECIPE = "fusion_2016_staged"


@pytest.fixture
def config() -> ExperimentConfig:
    return from_arguments(ExperimentConfig, ["--config", RECIPE, "--data.shards", "mine"])


def test_each_stream_is_a_run_of_its_own_that_is_not_registered(config: ExperimentConfig) -> None:
    for stream, epochs in (("spatial", 90), ("temporal", 1600)):
        one = stream_config(config, stream)
        assert (one.name, one.model.architecture, one.model.streams) == (f"{RECIPE}-{stream}", "late", stream)
        assert (one.training.epochs, one.data.sampling.num_snippets) == (epochs, 1)
        assert (one.model.freeze_below_fusion, one.tracking.register, one.stages.enabled) == (False, False, False)
        assert one.model.spatial.weights == "imagenet"
        same = stream_config(replace(config, stages=StagesConfig(enabled=True)), stream)
        assert (same.training, same.data) == (config.training, config.data), "nothing named: as the fused network"


def test_the_fused_network_starts_from_both_streams_and_learns_above_the_fusion_only(config: ExperimentConfig) -> None:
    ran: list[ExperimentConfig] = []

    def train_one(one: ExperimentConfig) -> Any:
        ran.append(one)
        return SimpleNamespace(trained=SimpleNamespace(checkpoint=f"runs/{one.name}/epoch-0001"))

    train_stages(config, train_one)
    assert [one.name for one in ran] == [f"{RECIPE}-spatial", f"{RECIPE}-temporal", RECIPE]
    last = ran[-1]
    assert last.model.spatial.weights == f"runs/{RECIPE}-spatial/epoch-0001/model.safetensors"
    assert last.model.temporal.weights == f"runs/{RECIPE}-temporal/epoch-0001/model.safetensors"
    assert last.model.freeze_below_fusion and last.tracking.register and not last.stages.enabled
    assert (last.training, last.data) == (config.training, config.data)


def test_stages_are_no_part_of_what_a_resumed_run_must_share(config: ExperimentConfig, tmp_path: Path) -> None:
    one = replace(fused_config(config, spatial="s", temporal="t"), storage=str(tmp_path))
    folder = RunFolder.of(one)
    before = fixed_settings(one)
    assert "stages" not in before
    Path(folder.uri).mkdir()
    Path(folder.settings).write_text(json.dumps(before | {"stages": {"enabled": True}}))
    storage.write_bytes(folder.checkpoint("epoch-0000/state.json"), b"{}")
    assert folder.begun_with(fixed_settings(one))


def test_what_stages_do_not_go_with_is_refused(config: ExperimentConfig) -> None:
    data, stages = DataConfig(shards="s", validation_split="val"), StagesConfig(enabled=True)
    with pytest.raises(ConfigError, match=r"wants model\.architecture fused, st_resnet or stfn, got late"):
        ExperimentConfig(name="n", data=data, model=ModelConfig(architecture="late"), stages=stages)
    with pytest.raises(ConfigError, match="initialises the network from its streams, init from other: leave one"):
        replace(config, init="other")
    with pytest.raises(ConfigError, match=r"stages\.enabled works with train, not with tune"):
        TuneConfig(name="n", data=data, stages=stages, search=SearchConfig(space={"seed": [0, 1]}))
    with pytest.raises(ConfigError, match=r"stages\.enabled makes three runs"):
        train(config)
    with pytest.raises(ConfigError, match="stages' epochs must be at least 1"):
        StageConfig(epochs=0)


class Command:
    """The command `train` on small towers, which can be killed and given again."""

    def __init__(self, shards: str, folder: Path) -> None:
        self.folder, self._log = folder, folder / "out.txt"
        tower = {"backbone": "vgg_small", "width": 4, "weights": None, "dropout": 0.0}
        settings: dict[str, Any] = {
            "name": "staged",
            "data.shards": shards,
            "data.sampling": {"num_snippets": 2, "min_stride_frames": 1, "max_stride_frames": 1, "flow_length": 2},
            "data.sampling.test_times": 1,
            "data.transforms.crop_px": 48,
            "model.spatial": tower,
            "model.temporal": tower,
            "model.fusion.layers": ["relu4"],
            "training": {"epochs": 2, "step_epochs": [1], "global_batch": 16},
            "stages": {"spatial": {"epochs": 2, "step_epochs": [1]}, "temporal": {"epochs": 2, "step_epochs": [1]}},
            "workers": {"num_workers": 1, "checkpoint_every_steps": 1},
            "storage": str(folder / "runs"),
            "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        }
        options = [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
        ]
        self._command = [sys.executable, "-m", "twostream_ray.cli", "train", "--config", RECIPE, *options]

    def __call__(self, *, until: Callable[[], bool] | None = None) -> str:
        """Run to the end, or kill -9 once something is there; returns what was said."""
        with self._log.open("w") as log:
            process = subprocess.Popen(self._command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + 280
        while process.poll() is None and not (until is not None and until()):
            assert time.monotonic() < limit, self._log.read_text()[-3000:]
            time.sleep(0.05)
        if until is None:
            assert process.returncode == 0, self._log.read_text()[-3000:]
        else:
            assert process.poll() is None, self._log.read_text()[-3000:]
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        return self._log.read_text()


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(900)
def test_the_stages_resume_after_a_kill_within_one_and_between_two(videos: Path, tmp_path: Path) -> None:
    shards = write_shards(videos, tmp_path / "shards", short_side_px=48)
    command, runs = Command(shards.uri, tmp_path), tmp_path / "runs"

    def saved(run: str) -> set[str]:
        return {path.parent.name for path in (runs / run).glob("epoch-*/state.json")}

    # Within the second stage: its first checkpoint is there.
    command(until=lambda: bool(saved("staged-temporal")))
    spatial = {path: path.read_bytes() for path in (runs / "staged-spatial").glob("*.json")}
    assert {"report.json", "published.json"} <= {path.name for path in spatial}
    within = saved("staged-temporal")

    # Between the second and the third.
    said = command(until=(runs / "staged-temporal/published.json").exists)
    assert "stage 1 of 3: the spatial stream alone, run 'staged-spatial'" in said and "stage 2 of 3" in said
    assert "epoch-0000" not in {name[:10] for name in within} or within, "it had begun"
    temporal = {path: path.read_bytes() for path in (runs / "staged-temporal").glob("*.json")}
    assert not (runs / "staged/report.json").exists()

    said = command()
    for path, content in (spatial | temporal).items():
        assert path.read_bytes() == content, f"{path}: a finished stage is not done again"
    history = json.loads((runs / "staged-temporal/report.json").read_text())["history"]
    assert [int(metrics["epoch"]) for metrics in history] == [0, 1]

    # What was frozen is what each stream had learnt alone, and only the last is registered.
    fused = load_file(Path(json.loads((runs / "staged/report.json").read_text())["checkpoint"]) / "model.safetensors")
    for stream in ("spatial", "temporal"):
        report = json.loads((runs / f"staged-{stream}/report.json").read_text())
        alone = load_file(Path(report["checkpoint"]) / "model.safetensors")
        for name in ("conv1.weight", "conv4.weight", "bn4.running_mean"):
            assert torch.equal(fused[f"{stream}.{name}"], alone[f"{stream}.{name}"]), name
        assert not torch.equal(fused[f"{stream}.fc8.weight"], alone[f"{stream}.fc8.weight"])
    versions = client_for(f"sqlite:///{tmp_path}/mlflow.db").search_model_versions("")
    assert len(versions) == 1 and "registered" in said
