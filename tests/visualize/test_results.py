import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from pixels import num_pixels

from twostream_ray.visualize import confusion_picture, curves_picture

SPATIAL, TEMPORAL, NETWORK = "#d55e00", "#0072b2", "#222222"


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


def test_drawing_leaves_pyplots_global_state_alone() -> None:
    code = "import sys, twostream_ray.visualize; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
