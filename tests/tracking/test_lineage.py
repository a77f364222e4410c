import json
import subprocess
from pathlib import Path

import pytest

from twostream_ray.tracking import lineage_tags
from twostream_ray.tracking.lineage import git_commit


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_ID", "TWOSTREAM_GIT_COMMIT"):
        monkeypatch.delenv(name, raising=False)


def test_commit_of_a_changed_checkout_says_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *settings, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    source = package / "lineage.py"
    source.write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr("twostream_ray.tracking.lineage.__file__", str(source))
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    source.write_text("a = 2\n")
    assert git_commit() == f"{commit} dirty"


def test_no_commit_is_claimed_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostream_ray.tracking.lineage.__file__", str(tmp_path / "lineage.py"))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    assert lineage_tags() == {}


def test_commit_named_by_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTREAM_GIT_COMMIT", "abc")
    assert lineage_tags(manifest_hash="m", flow_contract_hash="f", ray_job_id="j", train_split="train1") == {
        "manifest_hash": "m",
        "flow_contract_hash": "f",
        "git_commit": "abc",
        "ray_job_id": "j",
        "train_split": "train1",
    }


def test_submitted_job_is_known_by_its_submission_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    assert lineage_tags()["ray_job_id"] == "01000000"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert lineage_tags()["ray_job_id"] == "raysubmit_1"
