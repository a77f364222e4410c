import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from pixels import num_pixels

from twostream_ray.visualize import confusion_picture, curves_picture

SPATIAL, TEMPORAL, NETWORK = "#d55e00", "#0072b2", "#222222"


# -- confusion


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [101, 404])
def test_a_perfect_network_has_one_dark_cell_per_class(tmp_path: Path, num_classes: int) -> None:
    names = [f"class number {label}" for label in range(num_classes)]
    confusion_picture(np.eye(num_classes, dtype=int) * 7, names, tmp_path / "c.png")
    dark, pale = (num_pixels(tmp_path / "c.png", colour) for colour in ("#08306b", "#f7fbff"))
    assert dark / (dark + pale) == pytest.approx(1 / num_classes, rel=0.3)


def test_a_few_confused_clips_can_be_seen(tmp_path: Path) -> None:
    matrix = np.eye(21, dtype=int) * 40
    matrix[3, 20] = 1
    confusion_picture(matrix, [str(label) for label in range(21)], tmp_path / "c.png")
    shade = colormaps["Blues"](np.sqrt(1 / 41))[:3]
    assert min(1 - np.array(shade)) < 0.15 < max(1 - np.array(shade)), "darker than white"
    assert num_pixels(tmp_path / "c.png", shade) > 500


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


def test_only_classes_with_clips_have_a_row_and_others_that_were_predicted_a_grey_name(
    figures: list[Figure], tmp_path: Path
) -> None:
    matrix = np.zeros((6, 6), dtype=int)
    matrix[1, 1], matrix[1, 4], matrix[3, 3] = 5, 2, 7
    confusion_picture(matrix, [f"class {label}" for label in range(6)], tmp_path / "c.png", title="run, split test")
    axes = figures[0].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["class 1", "class 3"]
    names = {tick.get_text(): tick.get_color() for tick in axes.get_xticklabels()}
    assert names == {"class 1": "black", "class 3": "black", "class 4": "#8c8c8c"}
    assert "grey names: no clip of the split" in axes.get_xlabel()
    assert axes.get_title().splitlines() == ["run, split test", "top-1 85.7%: 12 of 14 clips right"]
    confusion_picture(matrix, [f"class {label}" for label in range(6)], tmp_path / "c.png", num_expected=16)
    assert figures[1].axes[0].get_title() == "top-1 85.7%: 12 of 14 clips right, 14 of the split's 16 scored"


@pytest.mark.slow
def test_of_many_classes_the_most_frequent_confusions_are_listed_and_nothing_is_cut_off(
    figures: list[Figure], tmp_path: Path
) -> None:
    matrix = np.eye(101, dtype=int) * 30
    matrix[3, 20], matrix[50, 2], matrix[100, 1] = 9, 12, 1
    confusion_picture(matrix, [f"a class of some length {label}" for label in range(101)], tmp_path / "c.png")
    listed = next(text.get_text() for text in figures[0].findobj(Text) if " taken for " in text.get_text())
    assert listed.splitlines() == [
        "12 of 42  a class of some length 50, taken for a class of some length 2",
        "9 of 39  a class of some length 3, taken for a class of some length 20",
        "1 of 31  a class of some length 100, taken for a class of some length 1",
    ]
    picture = imread(tmp_path / "c.png")[..., :3]
    assert (picture[[0, -1]] == 1).all() and (picture[:, [0, -1]] == 1).all()


# -- curves


def test_each_tower_has_its_own_curve(tmp_path: Path) -> None:
    history: list[dict[str, float]] = [
        {"epoch": epoch, "train_loss": 1 / (1 + epoch), "val_top1_spatial": 0.3, "learning_rate": 0.1}
        | {"train_loss_spatial": 0.5, "train_loss_other": 0.6}
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
    assert imread(tmp_path / "c.png").shape == (504, 1680, 4)


def test_curves_say_what_was_trained_which_epoch_was_kept_and_what_the_networks_loss_is(
    figures: list[Figure], tmp_path: Path
) -> None:
    history: list[dict[str, float]] = [
        {"epoch": epoch, "train_loss": 3.0, "train_loss_fused": 1.0, "train_loss_temporal": 2.0, "learning_rate": rate}
        for epoch, rate in enumerate([0.1, 0.01, 0.001])
    ]
    curves_picture(history, tmp_path / "c.png", title="fusion", kept_epoch=1)
    loss, _, rate = figures[0].axes
    assert figures[0].get_suptitle() == "fusion"
    assert loss.get_title() == "loss; of the network: sum of losses"
    for axes in figures[0].axes:
        (kept,) = [line for line in axes.lines if line.get_color() == "#009e73"]
        assert set(kept.get_xdata()) == {2}
    assert rate.get_title() == "learning rate" and rate.get_yscale() == "log"
    assert list(rate.lines[-1].get_ydata()) == [0.1, 0.01, 0.001]
    assert "kept checkpoint" in {text.get_text() for text in figures[0].findobj(Text)}


def test_a_network_of_one_tower_has_one_curve_of_each_kind(figures: list[Figure], tmp_path: Path) -> None:
    curves_picture([{"epoch": 0, "val_loss": 1.0, "val_loss_spatial": 1.0}], tmp_path / "c.png")
    assert len(figures[0].axes[0].lines) == 1 and figures[0].axes[0].get_title() == "loss"


def test_drawing_leaves_pyplots_global_state_alone() -> None:
    code = "import sys, twostream_ray.visualize; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
