import json
from pathlib import Path

import pytest
from noise_shards import noise_shards

from twostream_ray.cli import main
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.doctor.checks import Check, worst
from twostream_ray.runs.doctor.diagnosis import diagnose
from twostream_ray.runs.doctor.settings import DoctorConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import TrainingConfig


def found(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_machine_and_shards_that_are_well_pass_and_nothing_is_left_behind(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    noise_shards("shards", rows=[4, 4], num_fields=2, video=True, splits=("train", "test"))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    command = ["doctor", "shards", "--data.lanes", "2", "--training.global_batch", "4", "--speed", "false", "--json"]
    code = main(command)
    answer = json.loads(capsys.readouterr().out)
    assert code == answer["exit_code"] == max(0, worst([Check(**check) for check in answer["checks"]]))
    status = {check["name"]: check["status"] for check in answer["checks"]}
    wanted = ("shard set", "settings", "MLflow", "Python", "packages", "clock", "shards", "storage")
    assert {status[name] for name in wanted} == {"ok"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_what_a_training_would_stumble_over_is_wrong_and_named(cluster: None, tmp_path: Path) -> None:
    noise_shards(str(tmp_path / "shards"), rows=[4], num_fields=2)
    (tmp_path / "file").touch()
    config = DoctorConfig(
        data=DataConfig(shards=str(tmp_path / "shards"), train_split="train9", lanes=3),
        training=TrainingConfig(global_batch=4),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
        storage=str(tmp_path / "file" / "runs"),
        speed=False,
    )
    checks = found(diagnose(config).checks)
    assert checks["shard set"].status == "wrong" and "train9" in checks["shard set"].found
    assert checks["settings"].status == "wrong" and "lanes" in checks["settings"].found
    assert checks["storage"].status == "wrong"
    # A training goes on without it.
    assert checks["MLflow"].status == "doubtful" and "127.0.0.1:9" in checks["MLflow"].found


def test_an_address_without_a_cluster_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is on a cluster already")
    assert main(["doctor", "--address", "127.0.0.1:9"]) == 2
    assert "does not answer" in capsys.readouterr().err
