import shutil
import subprocess
from pathlib import Path

import pytest

from twostream_ray import recipes
from twostream_ray.cli import main
from twostream_ray.verbs.commands import VERBS
from twostream_ray.verbs.completion import script

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "twostream.bash"
    path.write_text(script() + '\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _twostream; echo "${COMPREPLY[*]}"\n')
    return path


def completed(sourced: Path, *words: str) -> list[str]:
    assert BASH is not None
    done = subprocess.run([BASH, "-eu", sourced, "twostream", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes_verbs_settings_choices_and_recipes(sourced: Path) -> None:
    assert completed(sourced, "tr") == ["train", "track"]
    assert set(completed(sourced, "")) == {*(name.partition(" ")[0] for name in VERBS), "help"}
    assert completed(sourced, "train", "--model.fusion.m") == ["--model.fusion.method"]
    assert completed(sourced, "train", "--model.fusion.method", "co") == ["concat", "conv"]
    assert completed(sourced, "tune", "--config", "") == recipes.names()
    assert completed(sourced, "inspect", "shards", "--verify", "") == ["true", "false"]
    assert completed(sourced, "benchmark", "st") == ["step"]
    assert completed(sourced, "benchmark", "step", "--ba") == ["--batch"]
    assert completed(sourced, "predict", "clip") == []  # files, which bash completes itself


def test_zsh_takes_the_functions_of_bash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("autoload") and written.endswith(script())


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "completion wants bash or zsh, got fish" in capsys.readouterr().err
