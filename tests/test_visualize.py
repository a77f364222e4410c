import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray

from twostream_ray.visualize import confusion_picture, contact_sheet, curves_picture, flow_colour

SPATIAL, TEMPORAL, NETWORK = "#d55e00", "#0072b2", "#222222"


def num_pixels(path: Path, colour: str | tuple[float, float, float]) -> int:
    """Pixels of a PNG that have this colour, to a level or two."""
    return int((np.abs(imread(path)[..., :3] - np.array(to_rgb(colour))) < 0.01).all(axis=-1).sum())


def one_pixel(x: float, y: float, *, max_px: float = 20.0) -> list[int]:
    return flow_colour(np.array([[[x, y]]]), max_px=max_px)[0, 0].tolist()


# -- flow as colour


@pytest.mark.real
def test_flow_has_the_colours_of_middleburys_reference_picture(real: Path) -> None:
    flow = np.frombuffer((real / "flow" / "colorTest.flo").read_bytes(), dtype="<f4", offset=12).reshape(151, 151, 2)
    colours = flow_colour(flow, max_px=float(np.hypot(flow[..., 0], flow[..., 1]).max())).astype(int)
    reference = np.rint(imread(real / "flow" / "colorTest.png")[..., :3] * 255).astype(int)
    assert np.abs(colours - reference).max() <= 1


def test_no_motion_is_white_and_motion_of_max_px_has_full_colour() -> None:
    assert one_pixel(0, 0) == [255, 255, 255]
    assert min(one_pixel(10, 0)) == 127
    assert min(one_pixel(19.99999, 0)) == 0


def test_each_direction_has_its_hue() -> None:
    red, green, blue = np.moveaxis([one_pixel(10 * x, 10 * y) for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))], -1, 0)
    assert (red[0], red[0] > green[0] + 60, red[0] > blue[0] + 60) == (255, True, True)  # right: red
    assert (red[1], blue[1]) == (255, 127)  # down: yellow
    assert (blue[2], red[2]) == (255, 127)  # left: cyan to blue
    assert (blue[3], green[3]) == (255, 127)  # up: blue to magenta


def test_motion_beyond_max_px_is_darker_and_unknown_flow_black() -> None:
    assert max(one_pixel(25, 0)) == 191
    for unknown in (np.nan, np.inf, 1.7e9):
        assert one_pixel(unknown, 0) == [0, 0, 0]


# -- confusion


@pytest.mark.parametrize("num_classes", [101, 404])
def test_a_perfect_network_has_one_dark_cell_per_class(tmp_path: Path, num_classes: int) -> None:
    names = [f"class number {label}" for label in range(num_classes)]
    confusion_picture(np.eye(num_classes, dtype=int) * 7, names, tmp_path / "c.png")
    dark, pale = (num_pixels(tmp_path / "c.png", colour) for colour in ("#08306b", "#f7fbff"))
    assert dark / (dark + pale) == pytest.approx(1 / num_classes, rel=0.3)


def test_a_few_confused_clips_can_be_seen(tmp_path: Path) -> None:
    matrix = np.eye(21, dtype=int) * 40
    confusion_picture(matrix, [str(label) for label in range(21)], tmp_path / "clean.png")
    matrix[3, 20] = 1
    confusion_picture(matrix, [str(label) for label in range(21)], tmp_path / "confused.png")
    clean, confused = imread(tmp_path / "clean.png"), imread(tmp_path / "confused.png")
    changed = np.abs(clean - confused).max(axis=-1) > 0.05
    assert changed.sum() > 500


def test_few_classes_have_their_clips_written_and_long_names_fit(tmp_path: Path) -> None:
    matrix = np.array([[12, 1], [0, 9]])
    confusion_picture(matrix, ["pushing something from left to right " * 3, "b$_$^" * 30], tmp_path / "c.png")
    picture = imread(tmp_path / "c.png")[..., :3]
    assert picture.shape[0] < 1200
    assert picture.shape[1] < 1200
    assert (picture[[0, -1]] == 1).all()  # nothing is cut off at the edges
    assert (picture[:, [0, -1]] == 1).all()


def test_a_class_without_a_clip_is_drawn_pale(tmp_path: Path) -> None:
    confusion_picture(np.zeros((2, 2), dtype=int), ["a", "b"], tmp_path / "c.png")
    assert num_pixels(tmp_path / "c.png", "#f7fbff") > 10_000


# -- curves


def test_each_tower_has_its_own_curve(tmp_path: Path) -> None:
    history: list[dict[str, float]] = [
        {"epoch": epoch, "train_loss": 1 / (1 + epoch), "val_top1_spatial": 0.3, "learning_rate": 0.1}
        for epoch in range(3)
    ]
    curves_picture(history, tmp_path / "two.png")
    assert num_pixels(tmp_path / "two.png", NETWORK) > 50
    assert num_pixels(tmp_path / "two.png", SPATIAL) > 50
    assert num_pixels(tmp_path / "two.png", TEMPORAL) == 0
    history[1]["val_top1_temporal"] = 0.5  # known for one epoch only
    curves_picture(history, tmp_path / "three.png")
    assert num_pixels(tmp_path / "three.png", TEMPORAL) > 20


@pytest.mark.parametrize("history", [[], [{"epoch": 0.0, "train_loss": 0.5, "val_top1": 0.5}]])
def test_curves_can_be_drawn_before_there_is_much_to_draw(tmp_path: Path, history: list[dict[str, float]]) -> None:
    curves_picture(history, tmp_path / "c.png")
    assert imread(tmp_path / "c.png").shape == (456, 1260, 4)


# -- frames over flow


def test_the_contact_sheet_shows_every_frame_and_its_flow(tmp_path: Path) -> None:
    frames = np.empty((5, 24, 32, 3), dtype=np.uint8)
    frames[:] = [[[[10, 200, 30]]], [[[20, 40, 90]]], [[[90, 40, 20]]], [[[70, 0, 70]]], [[[1, 99, 99]]]]
    flows = np.zeros((5, 12, 16, 2))
    flows[..., 0] = 25.0  # beyond max_px: a colour that the key does not have
    contact_sheet(frames, flows, tmp_path / "s.png", max_px=20, captions=[str(t) for t in range(5)], columns=3)
    areas = [num_pixels(tmp_path / "s.png", tuple(frame[0, 0] / 255)) for frame in frames]
    assert min(areas) > 10_000
    assert max(areas) < 1.1 * min(areas)
    beyond: NDArray[np.float64] = flow_colour(flows[0], max_px=20)[0, 0] / 255
    assert num_pixels(tmp_path / "s.png", tuple(beyond)) == pytest.approx(sum(areas), rel=0.05)


def test_drawing_leaves_pyplots_global_state_alone() -> None:
    code = "import sys, twostream_ray.visualize; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
