from pathlib import Path

import pytest
import torch
from html_pages import parsed, shown
from pytest import CaptureFixture

from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.sources.synthetic import CLASSES, SyntheticConfig, draw_clip
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video import raw_video
from twostream_ray.data.video.files import write_video
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained fused network and a video."""
    folder = tmp_path_factory.mktemp("explained")
    write_video(draw_clip(SyntheticConfig(size_px=64), "test", 0), path=folder / "clip.mp4", container="mp4", fps=25)
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(
            spatial=tower, temporal=tower, fusion=FusionConfig(layers=("relu2",), temporal="pool2d"), num_classes=4
        ),
        classes=CLASSES["binding"],
        contract=FlowContract(short_side_px=48),
        sampling=SamplingConfig(num_snippets=2, test_times=2),
        transforms=TransformConfig(crop_px=48),
    )
    save_model(folder / "model", package.build(pretrained=False), package)
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


def explain(folder: Path, out: Path, *more: str) -> int:
    return main(["explain", str(folder / "clip.mp4"), "--model", str(folder / "model"), "--out", str(out), *more])


@pytest.mark.slow
def test_a_page_says_why_and_shows_where_by_every_layer(
    folder: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert explain(folder, page, "--moments", "2") == 0
    said = capsys.readouterr().out
    assert "appearance and" in said and str(page) in said
    text = shown(page.read_bytes())
    for heading in ("Why this is", "Appearance or motion", "Which seconds matter", "Where it looked: motion"):
        assert heading in text
    assert "By integrated gradients; they add up to the difference except for" in text
    assert parsed(page.read_bytes()).tags.count("img") == 3 * 2 * 2  # layers, moments, frame and motion
    assert explain(folder, page, "--layers", "[fused]", "--label", "left") == 0  # over its own page
    text = shown(page.read_bytes())
    assert "Where it looked after the fusion of both streams" in text and "Where it looked: motion" not in text


def test_a_video_shows_the_same_pictures_and_is_written_over(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "where.mp4"
    assert explain(folder, out) == 0
    assert explain(folder, out) == 0
    sizes = {frame.shape for frame in raw_video.FrameStream(out)}
    assert sizes == {(2 * 48, 3 * 48, 3)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "[relu4]"], "layers must be of spatial, temporal, fused, got 'relu4'"),
        (["--label", "fly"], "label must be a class of the model, got 'fly': it has right, down, left, up"),
        (["--head", "other"], "head must name a data set"),
        (["--out", "page.pdf"], "out must end in .html (a page) or .mp4 (a video)"),
        (["--moments", "0"], "moments"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(
    folder: Path, tmp_path: Path, capsys: CaptureFixture[str], more: list[str], said: str
) -> None:
    assert explain(folder, tmp_path / "page.html", *more) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["page.html", "video.mp4"])
def test_a_file_of_somebody_else_is_not_written_over(
    folder: Path, tmp_path: Path, capsys: CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("<!DOCTYPE html><p>mine</p>")
    assert explain(folder, tmp_path / name) == 2
    assert "a file that it did not write" in capsys.readouterr().err
    assert "mine" in (tmp_path / name).read_text()
