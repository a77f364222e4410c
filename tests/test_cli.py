import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twostream_ray import __version__
from twostream_ray.cli import main
from twostream_ray.data.shards.shards import ShardSet


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refusal prints; the exit code must be 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("twostream") and "Traceback" not in captured.out + captured.err
    return line


def test_help_answers_in_under_a_second_of_a_processor_and_lists_the_verbs() -> None:
    command = [str(Path(sys.executable).with_name("twostream")), "--help"]
    best = 9.0
    for _ in range(3):
        before = os.times()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = os.times()  # not the clock: others may be at work on the machine
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, spent)
    assert best < 1
    for verb in ("synthesize", "ingest", "train", "evaluate", "predict", "pull", "demo"):
        assert verb in done.stdout


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown verb 'fly'" in refused(["fly"], capsys)
    assert "unknown verb 'trian': did you mean train?" in refused(["trian"], capsys)
    assert "benchmark wants loader, ingest, step, train, predict, got nothing" in refused(["benchmark"], capsys)
    assert "track wants replay, got rplay" in refused(["track", "rplay"], capsys)


def test_the_package_runs_as_a_module_and_says_its_version() -> None:
    for option in ("-V", "--version"):
        done = subprocess.run(
            [sys.executable, "-m", "twostream_ray", option], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"twostream_ray {__version__}\n"


def test_demo_needs_neither_a_recipe_nor_a_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("in the way")
    assert "storage must be a directory or be in one" in refused(["demo"], capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["ingest", "--catalog.root", "/nowhere/at/all", "--out", "x"],
            "/nowhere/at/all: it does not exist; check the path",
        ),
        (
            ["ingest", "--catalog.root", "a", "--out", "b", "--flow.bond", "1"],
            "unknown setting 'flow.bond'; did you mean",
        ),
        (
            ["ingest", "--catalog.root", "a", "--out", "b", "--rows_per_shard", "many"],
            '"rows_per_shard": Expected a int',
        ),
        (
            ["train", "--name", "a", "--data.shards", "/nowhere/at/all"],
            "it has no manifest.json: run `twostream ingest` first",
        ),
        (
            ["train", "--name", "a b", "--data.shards", "x"],
            "name must be a word without blanks, slashes and control characters",
        ),
        (["predict", "v.avi", "--model", "/nowhere/at/all"], "no model at /nowhere/at/all"),
        (["evaluate", "--model", "m", "--shards", "/nowhere/at/all"], "it has no manifest.json"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_way_out(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(arguments, capsys)


def test_shards_are_looked_for_before_a_cluster_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "it has no manifest.json" in refused(["train", "--name", "a", "--data.shards", "/nowhere/at/all"], capsys)


def test_a_class_folder_that_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    (videos / "train/run").mkdir(parents=True)
    (videos / "train/jump").symlink_to("/nowhere")
    (videos / "train/run/a.avi").write_bytes(b"x")
    said = refused(["ingest", "--catalog.root", str(videos), "--out", str(tmp_path / "out")], capsys)
    assert "class folder train/jump" in said and "cannot be read (a link to nothing)" in said


@pytest.fixture(scope="module")
def model(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model for the shards: what is tested here is everything around it."""
    from twostream_ray.data.sampling import SamplingConfig
    from twostream_ray.data.transforms import TransformConfig
    from twostream_ray.model_package import ModelPackage, save_model
    from twostream_ray.models.settings import ModelConfig, TowerConfig

    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(architecture="late", spatial=tower, temporal=tower),
        classes=shard_set.classes,
        contract=shard_set.contract,
        sampling=SamplingConfig(num_snippets=1, test_times=1),
        transforms=TransformConfig(crop_px=48),
    )
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, package.build(pretrained=False), package)
    return directory


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    command = f"ulimit -f 1; exec {Path(sys.executable).with_name('twostream')} synthesize {tmp_path}/videos"
    small = " --clips.train_clips 4 --clips.val_clips 0 --clips.test_clips 0"
    done = subprocess.run(["bash", "-c", command + small], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "a disk is full or its quota used up" in done.stderr.splitlines()[-1]


def test_predict_prints_classes_with_probabilities(
    model: Path, videos: Path, shard_set: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(next((videos / "test").rglob("*.mp4")))
    assert main(["predict", video, "--model", str(model), "--format", "json", "--top_k", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    (head,) = answer["heads"]
    assert head["classes"] == list(shard_set.classes) and {name for name, _ in head["top"]} == set(shard_set.classes)
    assert dict(head["top"]) == dict(zip(head["classes"], head["probabilities"], strict=True))
    assert sum(head["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_an_unreadable_video_is_one_line_and_does_not_spoil_the_others(
    model: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is text")
    good = str(next((videos / "test").rglob("*.avi")))
    assert main(["predict", str(bad), good, str(tmp_path / "missing.mp4"), "--model", str(model)]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(good) and len(captured.out.splitlines()) == 1
    first, second = captured.err.splitlines()
    assert "bad.mp4: not a readable video, 12 bytes" in first
    assert "missing.mp4: it does not exist; check the path" in second


@pytest.mark.real
def test_every_corrupt_file_is_one_line_and_none_is_answered(
    model: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt = sorted(map(str, (real / "corrupt").iterdir()))
    whole = sorted((real / "ucf101").rglob("*.avi"))[0].read_bytes()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"{cut}.avi").write_bytes(whole[:cut])
        corrupt.append(str(tmp_path / f"{cut}.avi"))
    assert main(["predict", *corrupt, "--model", str(model)]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    lines = captured.err.splitlines()
    assert len(lines) == len(corrupt) == 10
    assert all(path in line for path, line in zip(corrupt, lines, strict=True))


def test_flow_of_another_kind_is_refused(
    model: Path, shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "model"
    shutil.copytree(model, other)
    values = json.loads((other / "model.json").read_text())
    values["contract"]["bound_px"] = 15.0
    (other / "model.json").write_text(json.dumps(values))
    said = refused(["evaluate", "--model", str(other), "--shards", shard_set.uri, "--out", str(tmp_path / "o")], capsys)
    assert "wants flow bound_px 15.0" in said and "has bound_px 20.0: ingest again" in said


def test_evaluate_writes_report_scores_and_picture(
    model: Path, shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model), "--shards", shard_set.uri, "--out", str(tmp_path), "--workers.num_workers", "1"]
    assert main(["evaluate", *arguments]) == 0
    assert "20 of 20 clips" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "scores", "confusion.png", "results.html"}


def test_synthesize_writes_real_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--clips.group",
        "order",
        "--clips.train_clips",
        "4",
        "--clips.val_clips",
        "0",
        "--clips.test_clips",
        "2",
    ]
    assert main(["synthesize", str(tmp_path / "v"), *arguments, "--clips.size_px", "48"]) == 0
    assert "6 clips" in capsys.readouterr().out
    assert len(list((tmp_path / "v").rglob("*.mp4"))) + len(list((tmp_path / "v").rglob("*.avi"))) == 6


def test_the_command_is_a_module_as_well() -> None:
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "twostream_ray.cli", "--version"], capture_output=True, text=True
    )
    assert (printed.returncode, printed.stderr) == (0, "") and printed.stdout.startswith("twostream_ray ")
