from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from pixels import num_pixels

from twostream_ray.visualize import class_accuracies_picture, reliability_picture

BAR, GAP, DOT = "#6baed6", "#d55e00", "#08306b"


def test_a_network_that_is_too_sure_has_long_gaps(tmp_path: Path) -> None:
    centres = (np.arange(15) + 0.5) / 15
    clips = np.full(15, 10)
    reliability_picture(centres, centres, clips, tmp_path / "calibrated.png")
    reliability_picture(centres, centres**2, clips, tmp_path / "sure.png", title="$run$ <a>")
    calibrated, sure = (num_pixels(tmp_path / f"{name}.png", GAP) for name in ("calibrated", "sure"))
    assert sure > calibrated + 500


def test_a_bin_without_a_clip_has_no_bar(figures: list[Figure], tmp_path: Path) -> None:
    accuracies = np.array([np.nan] * 10 + [0.8] * 5)
    reliability_picture(accuracies, accuracies, [0] * 10 + [4] * 5, tmp_path / "r.png")
    assert len(figures[0].axes[0].patches) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "num_shown"), [(4, 4), (101, 101), (404, 120)])
def test_the_weakest_classes_are_drawn_first_and_the_rest_is_counted(
    figures: list[Figure], tmp_path: Path, num_classes: int, num_shown: int
) -> None:
    clips = np.full(num_classes + 1, 10_000)
    clips[-1] = 0  # a class without a clip is left out
    right = np.arange(num_classes + 1)[::-1].copy()
    ends = np.tile([0.1, 0.9], (num_classes + 1, 1))
    names = [f"class {label}" for label in range(num_classes + 1)]
    class_accuracies_picture(right, clips, ends, names, tmp_path / "c.png", title="run")
    labels = [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()]
    assert len(labels) == num_shown and labels[0] == f"class {num_classes - 1}  1/10000"
    said = " ".join(text.get_text() for text in figures[0].findobj(Text))
    assert ("284 strongest classes are left out" in said) == (num_classes == 404)
    picture = imread(tmp_path / "c.png")[..., :3]
    assert (picture[[0, -1]] == 1).all() and (picture[:, [0, -1]] == 1).all()  # nothing is cut off
    assert picture.shape[0] < 2600 and num_pixels(tmp_path / "c.png", DOT) > 10 * num_shown
