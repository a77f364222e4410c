from pathlib import Path

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.storage import refuse_uploaded
from twostream_ray.tracking import TrackingConfig

TRAIN = ["train", "--name", "a", "--data.shards", "shards"]
TUNE = ["tune", "--name", "a", "--data", "{shards: s, validation_split: v}", "--search.space", "{seed: [1, 2]}"]
WRITES = {
    "train": TRAIN,
    "tune": TUNE,
    "demo": ["demo", "--name", "a", "--data.shards", "s"],
    "ingest": ["ingest", "--catalog.root", "videos", "--out", "shards"],
    "evaluate": ["evaluate", "--model", "m", "--shards", "s"],
    "findings": ["findings", "--out", "findings"],
    "pull": ["pull", "model"],
    "tune-scores": ["tune-scores", "--choose.both", "a.npz", "--out", "scores"],
    "benchmark loader": ["benchmark", "loader", "--data.shards", "shards", "--out", "bench"],
    "synthesize": ["synthesize", "videos"],
    "inspect": ["inspect", "shards", "--out", "pictures/inspect.png"],
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a job, as Ray unpacks what `ray job submit --working-dir` has uploaded."""
    folder = tmp_path / "session_2026-01-01_00-00-00_000000_1/runtime_resources/working_dir_files/_ray_pkg_0123456789ab"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("verb", WRITES)
def test_a_job_does_not_write_into_the_copy_of_its_working_directory(
    verb: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(WRITES[verb], capsys)
    assert "in the copy of the job's working directory that Ray keeps on this node and deletes: set --" in said
    assert not list(copy.iterdir())


@pytest.mark.parametrize("arguments", [TRAIN, TUNE], ids=["train", "tune"])
def test_a_jobs_default_tracking_is_refused_and_its_runtime_environments_counts(
    arguments: list[str],
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*arguments, "--storage", str(tmp_path / "runs")]
    said = refused(arguments, capsys)
    assert "tracking.uri would be mlflow.db in the copy" in said and "--runtime-env-json" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert "it has no manifest.json" in refused(arguments, capsys)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///demo/mlflow.db")
    assert "tracking.uri would be demo/mlflow.db" in refused(arguments, capsys)


@pytest.mark.parametrize("verb", [["predict", "v.avi"], ["promote", "1"], ["rollback"], ["pull", "/tmp/nothing"]])
def test_a_registry_in_the_copy_is_no_registry(verb: list[str], copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tracking.uri would be mlflow.db in the copy" in refused(verb, capsys)
    assert not list(copy.iterdir())


def test_by_any_name_the_copy_is_the_copy(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    for path in (f"{copy}/runs", f"{tmp_path}/link/runs", f"{copy}/../_ray_pkg_0123456789ab/runs"):
        with pytest.raises(ConfigError, match=r"storage would be runs in the copy .*: choose another"):
            refuse_uploaded(path, setting="storage", way_out="choose another")
    for path in (str(tmp_path), "s3://bucket/runtime_resources/working_dir_files/a/b", "/working_dir_files/a"):
        refuse_uploaded(path, setting="storage", way_out="choose another")
    (copy / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=r"tracking\.uri would be x/mlflow"):
        TrackingConfig(uri="sqlite:///x/mlflow.db").require_usable()
