import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import ROOT, fenced_blocks
from pytest import CaptureFixture
from small_networks import late
from torch import nn

from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.files import write_video
from twostream_ray.inference import Classifier
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.outputs import refuse_unmarked_file
from twostream_ray.runs.score.exported_network import MARK

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNER = next(
    block.code for block in fenced_blocks((ROOT / "docs/export.md").read_text()) if block.language == "python"
)


def save(folder: Path, model: ModelConfig) -> Path:
    """A network with biases, so that its classes differ."""
    torch.manual_seed(0)
    package = ModelPackage(
        model=model,
        classes=("a", "b", "c", "d"),
        contract=FlowContract(short_side_px=48),
        sampling=SamplingConfig(num_snippets=2, test_times=2),
        transforms=TransformConfig(crop_px=32, short_side_px=40),
    )
    network = package.build(pretrained=False)
    for module in network.modules():
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(bias, std=0.5)
    save_model(folder, network, package)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its ONNX file, and a video."""
    folder = tmp_path_factory.mktemp("exported")
    write_video(draw_clip(SyntheticConfig(size_px=64), "test", 0), path=folder / "clip.mp4", container="mp4", fps=25)
    save(folder / "model", late())
    assert export(folder, folder / "model.onnx", "--videos", f"[{folder / 'clip.mp4'}]") == 0
    return folder


def export(folder: Path, out: Path, *more: str) -> int:
    return main(["export", str(folder / "model"), "--out", str(out), *more])


def run(page: str, *arguments: object, folder: Path) -> str:
    """What a script prints; it may load neither torch nor this package."""
    (folder / "run.py").write_text(page)
    checked = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0]); "
        "sys.exit(sorted({'torch', 'twostream_ray'} & set(sys.modules)) or None)"
    )
    command = [sys.executable, "-c", checked, str(folder / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runner_of_the_page_answers_as_the_classifier_without_torch(folder: Path, tmp_path: Path) -> None:
    lines = run(RUNNER, folder / "model.onnx", folder / "clip.mp4", folder=tmp_path).splitlines()
    found = {name: float(value) for value, name in map(str.split, lines)}
    (answer,) = Classifier.load(folder / "model").predict([folder / "clip.mp4"])
    wanted = dict(answer.top)
    assert list(found) == list(wanted)
    assert max(abs(found[name] - wanted[name]) for name in wanted) < 0.01
    assert max(found.values()) - min(found.values()) > 0.05


@pytest.mark.slow
def test_a_torch_program_takes_any_number_of_views_and_names_no_file_of_this_machine(
    folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pt2"
    assert export(folder, out, "--format", "torch") == 0
    said = capsys.readouterr().out
    assert "on 2 views of 1 video its outputs differ from torch's by at most" in said and "(allowed: 1e-04)" in said
    extra = {"twostream.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    assert '"averages": "probabilities"' in extra["twostream.json"]
    with zipfile.ZipFile(out) as archive:
        assert all(b"PROTO" not in archive.read(name) for name in archive.namelist() if name.endswith((".pt", ".pkl")))
        assert all(str(ROOT).encode() not in archive.read(name) for name in archive.namelist())
    views = torch.zeros(7, 2, 3, 32, 32, dtype=torch.uint8), torch.full((7, 2, 20, 32, 32), 128, dtype=torch.uint8)
    logits, scores = program(*views)
    refuse_unmarked_file(str(out), mark=MARK["torch"], verb="export")
    refuse_unmarked_file(str(folder / "model.onnx"), mark=MARK["onnx"], verb="export")
    assert logits.shape == (7, 2, 4) and scores.shape == (7, 4)
    np.testing.assert_allclose(scores.sum(dim=1).numpy(), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "torch"], "out must end in .pt2 for format torch, got"),
        (["--videos", "[missing.mp4]"], "missing.mp4"),
        (["--model", "nowhere"], "no model at nowhere"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(
    folder: Path, tmp_path: Path, capsys: CaptureFixture[str], more: list[str], said: str
) -> None:
    arguments = more if "--model" in more else [str(folder / "model"), *more]
    assert main(["export", *arguments, "--out", str(tmp_path / "model.onnx")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_not_written_over(folder: Path, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    assert export(folder, tmp_path / "model.onnx") == 2
    assert "a file that it did not write" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_text() == "mine"
