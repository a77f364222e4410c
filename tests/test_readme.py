"""Commands of README and of pages that go on from there, pasted in order into a fresh clone's shell, on real videos.

The clone has what git has, and this environment in place of the one that README's first block installs, which takes
minutes and a network: `make soak` runs that block too.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT, Block, fenced_blocks, pasted

from twostream_ray.cli import main
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize

PAGES = ["README.md", "docs/search.md", "docs/data_sets.md"]
README = [block for page in PAGES for block in fenced_blocks((ROOT / page).read_text())]

UCF101 = [
    *("JavelinThrow/v_JavelinThrow_g22_c01.avi", "JavelinThrow/v_JavelinThrow_g05_c05.avi"),
    *("Diving/v_Diving_g16_c04.avi", "Diving/v_Diving_g03_c07.avi"),
    *("PizzaTossing/v_PizzaTossing_g18_c01.avi", "PizzaTossing/v_PizzaTossing_g01_c04.avi"),
]
"""Of three classes a clip of train1 and one of test1 each; their lists name these alone."""


def commands(block: Block) -> Iterator[list[str]]:
    """The `twostream` commands of a block, as a shell splits them."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["twostream"]:
            yield words[1:]


def verbs(blocks: list[Block]) -> set[str]:
    return {command[0] for block in blocks for command in commands(block)}


def surroundings(clone: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "PYTHON"))}
    return kept | {
        "PYTHONPATH": str(clone),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def clone_into(folder: Path) -> Path:
    """The files that git has or would add, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def with_one_worker(clone: Path) -> None:
    """Give the recipe of the pages' commands one worker: each takes seconds to start, and other tests have two."""
    recipe = clone / "twostream_ray/recipes/own_videos_cpu.yaml"
    text = recipe.read_text()
    assert "workers:" not in text
    recipe.write_text(f"{text}workers: {{num_workers: 1}}\n")


def add_videos(clone: Path, real: Path) -> None:
    """What README has beside it: `videos/CLASS/*`, UCF101 as its authors pack it, and a video to be classified."""
    synthesize(
        SyntheticConfig(group="motion", size_px=48, train_clips=24, val_clips=0, test_clips=0),
        clone / "made",
        workers=1,
    )
    shutil.copytree(clone / "made/train", clone / "videos")
    shutil.copy(next(iter(sorted((clone / "videos").glob("*/*")))), clone / "clip.mp4")
    for name in UCF101:
        (clone / "UCF-101" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real / "ucf101" / name, clone / "UCF-101" / name)
    lists = clone / "ucfTrainTestlist"
    lists.mkdir()
    classes = sorted({name.partition("/")[0] for name in UCF101})
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(classes, start=1)))
    for path in (real / "lists/ucf101_official_crlf").glob("*list*.txt"):
        of_ours = [line.split()[0] for line in path.read_text().splitlines() if line.split()[0] in UCF101]
        if path.name.startswith("train"):
            of_ours = [f"{name} {classes.index(name.partition('/')[0]) + 1}" for name in of_ours]
        (lists / path.name).write_text("".join(f"{line}\n" for line in of_ours))


def test_blocks_are_commands_and_those_that_are_not_pasted_say_why() -> None:
    assert {block.language for block in README} == {"bash", "python"}
    left_out = [block for block in README if block.reason is not None]
    assert all(len(block.reason or "") > 10 for block in left_out)
    ours = [block for block in README if block.reason is None]
    assert verbs(ours) >= {"ingest", "inspect", "train", "tune", "predict", "evaluate"}
    assert any(block.language == "python" for block in ours)


@pytest.mark.parametrize(
    "command",
    [
        command
        for block in README
        if block.reason is not None
        for command in commands(block)
        if command[0] in ("train", "tune", "ingest") and "s3://" not in " ".join(command)
    ],
    ids=" ".join,
)
def test_a_command_that_is_not_pasted_has_settings_that_exist(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there are no data they are what it asks for, and not another spelling of its options."""
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "unknown" not in said and "no such recipe" not in said, said


PLANNED = "twostream train ucf101"
"""The second training is looked at alone, with the real shards: README's own trains, evaluates and registers."""


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.own_cluster
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "as_it_stands", [pytest.param(False, id="sooner"), pytest.param(True, id="as_it_stands", marks=pytest.mark.soak)]
)
def test_every_command_of_the_readme_works_when_pasted_in_order(as_it_stands: bool, tmp_path: Path, real: Path) -> None:
    clone = clone_into(tmp_path / "clone")
    add_videos(clone, real)
    script = "\n".join(pasted([block for block in README if block.reason is None]))
    assert script.count(PLANNED) == 1
    if not as_it_stands:
        with_one_worker(clone)
        script = script.replace(PLANNED, f"{PLANNED} --dry_run true")
    done = subprocess.run(
        ["bash", "-c", script], cwd=clone, env=surroundings(clone), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert (clone / "mlflow.db").exists() and (clone / "runs").is_dir()


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_the_first_block_installs_what_the_others_need(tmp_path: Path) -> None:
    clone = clone_into(tmp_path / "clone")
    first = README[0]
    assert "pip install" in first.code and first.reason is not None
    kept = {name: value for name, value in surroundings(clone).items() if name != "PYTHONPATH"}
    script = f"{first.code}\nset -e\ncd /\ntwostream --version\npython -c 'import twostream_ray as ts; ts.network'\n"
    subprocess.run(["bash", "-e", "-c", script], cwd=clone, env=kept, check=True)
