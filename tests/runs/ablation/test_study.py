import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from score_tables import PROTOCOL, write_table
from whole_shards import write_shards

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.ablation.settings import AblationConfig
from twostream_ray.runs.ablation.study import (
    APPEARANCE,
    CLIP3D,
    FUSED,
    MOTION,
    names_of,
    table_of,
    train_all,
    trainings,
)
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.stages import StageConfig, StagesConfig
from twostream_ray.verbs.commands import parse

SOFTMAX = PROTOCOL | {"average": "softmax"}
PARAMETERS = {APPEARANCE: 30, MOTION: 40, FUSED: 75, CLIP3D: 90}


@pytest.fixture
def config(tmp_path: Path) -> AblationConfig:
    arguments = ["--config", "own_videos_cpu", "--name", "mine", "--storage", str(tmp_path), "--clip3d", "true"]
    return parse("compare-streams", AblationConfig, arguments)


def scored(config: AblationConfig, right: dict[str, list[bool]], *, sure: float = 1.0, **changed: Any) -> None:
    """Evaluations of 4 clips of 2 classes: whether each network is right on each, and how sure appearance is."""
    labels = np.array([0, 1, 0, 1])
    for suffix, hits in right.items():
        taken = np.where(hits, labels, 1 - labels)
        logits = np.where(taken[:, None] == np.arange(2), 1.0, -1.0).astype(np.float32)
        logits *= sure if suffix == APPEARANCE else 1.0
        softmax = suffix in (APPEARANCE, MOTION)
        write_table(
            RunFolder.of(trainings(config)[suffix]).evaluation,
            logits[:, None, None],
            labels=labels.tolist(),
            protocol=SOFTMAX if softmax else PROTOCOL,
            towers=("spatial",),
            model_sha256=f"{len(suffix):02x}" * 32,
            **changed,
        )


def test_each_stream_and_the_recipes_network_are_runs_of_one_budget(config: AblationConfig) -> None:
    runs = trainings(config)
    assert [one.name for one in runs.values()] == ["mine-appearance", "mine-motion", "mine-fused", "mine-clip3d"]
    assert {suffix: (one.model.architecture, one.model.streams) for suffix, one in runs.items()} == {
        APPEARANCE: ("late", "spatial"),
        MOTION: ("late", "temporal"),
        FUSED: ("fused", "both"),
        CLIP3D: ("clip3d", "both"),
    }
    for one in runs.values():
        assert type(one) is ExperimentConfig
        assert (one.training, one.data, one.seed) == (config.training, config.data, config.seed)
        assert (one.model.spatial, one.model.temporal) == (config.model.spatial, config.model.temporal)
    assert runs[FUSED].model == config.model
    assert [suffix for suffix, one in runs.items() if one.tracking.register] == [FUSED]
    assert CLIP3D not in trainings(replace(config, clip3d=False))


def test_in_stages_the_streams_alone_are_those_that_the_fused_network_starts_from(config: AblationConfig) -> None:
    staged = replace(config, stages=StagesConfig(enabled=True, spatial=StageConfig(epochs=3)))
    ran: list[ExperimentConfig] = []

    def train_one(one: ExperimentConfig) -> Any:
        ran.append(one)
        return SimpleNamespace(trained=SimpleNamespace(checkpoint=f"runs/{one.name}/epoch-0001", parameters=1))

    trained = train_all(trainings(staged), train_one)
    assert list(trained) == [APPEARANCE, MOTION, FUSED, CLIP3D]
    names = ["mine-fused-spatial", "mine-fused-temporal"]
    assert [one.name for one in ran] == [*names, *names, "mine-fused", "mine-clip3d"]
    assert ran[0] == ran[2] and ran[0].training.epochs == 3, "the second time it is found to be finished"
    assert ran[4].model.spatial.weights == "runs/mine-fused-spatial/epoch-0001/model.safetensors"
    assert ran[5].training == config.training and not ran[5].stages.enabled


def test_the_table_has_each_network_against_appearance_alone_on_the_same_clips(config: AblationConfig) -> None:
    scored(
        config,
        {
            APPEARANCE: [True, False, False, False],
            MOTION: [False, True, True, False],
            FUSED: [True, True, True, True],
            CLIP3D: [True, False, False, True],
        },
        sure=2.0,
        num_expected=5,
    )
    rows = table_of(config, PARAMETERS)
    assert [row.network for row in rows] == [
        "appearance alone",
        "motion alone",
        "late: scores averaged",
        "fused: conv at relu3",
        "RGB clips, no flow: r2plus1d_18",
    ]
    # Appearance is surer of what it says, so it decides wherever the streams differ.
    assert [row.top1 for row in rows] == [0.25, 0.5, 0.25, 1.0, 0.5]
    assert [row.parameters for row in rows] == [30, 40, 70, 75, 90]
    assert {row.coverage for row in rows} == {"4 of 5 clips"}
    assert rows[2].run == "mine-appearance and mine-motion"
    assert rows[0].against_appearance is None
    fused = rows[3].against_appearance
    assert fused is not None
    assert (fused.only_first, fused.only_second, fused.difference) == (0, 3, 0.75)
    assert fused.mcnemar_p == pytest.approx(2 * 0.5**3)
    assert rows[3].intervals.top1.high == 1.0 and not rows[3].intervals.is_trusted


def test_evaluations_of_other_clips_are_not_put_into_one_table(config: AblationConfig) -> None:
    right = {suffix: [True] * 4 for suffix in (APPEARANCE, MOTION, FUSED)}
    scored(config, right)
    scored(config, {CLIP3D: [True] * 4}, manifest_hash="ff" * 32)
    with pytest.raises(ConfigError, match="wanted two evaluations of the same clips"):
        table_of(config, PARAMETERS)


def test_every_network_that_joins_both_streams_has_a_name() -> None:
    for architecture, name in (("st_resnet", "motion into residual units"), ("stfn", "residual inception blocks")):
        model = ModelConfig()
        object.__setattr__(model, "architecture", architecture)
        assert names_of(model)[FUSED].startswith(f"fused: {name}")


def twostream(folder: Path, *words: str) -> str:
    """What a command of the package prints, with `folder` as its working directory."""
    command = [sys.executable, "-m", "twostream_ray.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def compared(shards: str, folder: Path) -> str:
    """What `compare-streams` prints on small towers."""
    settings: dict[str, Any] = {
        "name": "small",
        "data.sampling": {"num_snippets": 2, "min_stride_frames": 1, "max_stride_frames": 1, "flow_length": 2},
        "data.sampling.test_times": 1,
        "data.transforms": {"crop_px": 48, "short_side_px": None, "size_jitter": 0.0, "flip": False},
        "model.spatial.width": 4,
        "model.temporal.width": 4,
        "model.clip3d": {"network": "r2plus1d_18", "width": 4},
        "clip3d": True,
        "training": {"epochs": 1, "global_batch": 16, "warmup_epochs": 0},
        "workers.num_workers": 1,
        "storage": str(folder / "runs"),
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
    }
    given = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    return twostream(folder, "compare-streams", shards, "--config", "own_videos_cpu", *given)


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(1800)
def test_one_command_trains_compares_and_the_second_time_trains_nothing(videos: Path, tmp_path: Path) -> None:
    shards = write_shards(videos, tmp_path / "shards", short_side_px=48)
    assert "4 trainings: small-appearance, small-motion, small-fused, small-clip3d" in compared(shards.uri, tmp_path)
    out = tmp_path / "runs/small-streams"
    assert {path.name for path in out.iterdir()} == {"streams.json", "streams.md", "streams.html", "streams.png"}
    rows = json.loads((out / "streams.json").read_text())["rows"]
    assert len(rows) == 5 and {row["num_clips"] for row in rows} == {20}
    assert rows[2]["parameters"] == rows[0]["parameters"] + rows[1]["parameters"]
    states = sorted((tmp_path / "runs").glob("*/*/state.json"))
    before = {path: path.stat().st_mtime_ns for path in states}
    compared(shards.uri, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/*/state.json"))} == before
    assert json.loads((out / "streams.json").read_text())["rows"] == rows


@pytest.mark.soak
@pytest.mark.real
@pytest.mark.own_cluster
@pytest.mark.timeout(1800)
def test_the_table_is_made_of_real_clips_as_a_smoke_test(real: Path, tmp_path: Path) -> None:
    """A few clips of UCF101: that the command works on them, and nothing about accuracy."""
    split = ("--catalog.split", "[0.5, 0.2, 0.3]", "--flow.short_side_px", "48")
    twostream(tmp_path, "ingest", str(real / "ucf101"), *split, "--out", "shards")
    assert "are few, so these intervals are rough" in compared("shards", tmp_path)
