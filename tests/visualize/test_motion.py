from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from pixels import num_pixels

from twostream_ray.visualize import contact_sheet, flow_colour


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
    red, green, blue = np.transpose([one_pixel(10 * x, 10 * y) for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    assert (red[0], red[0] > green[0] + 60, red[0] > blue[0] + 60) == (255, True, True)  # right: red
    assert (red[1], blue[1]) == (255, 127)  # down: yellow
    assert (blue[2], red[2]) == (255, 127)  # left: cyan to blue
    assert (blue[3], green[3]) == (255, 127)  # up: blue to magenta


def test_motion_beyond_max_px_is_darker_and_unknown_flow_black() -> None:
    assert max(one_pixel(25, 0)) == 191
    for unknown in (np.nan, np.inf, 1.7e9):
        assert one_pixel(unknown, 0) == [0, 0, 0]


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


@pytest.mark.slow
def test_a_heading_takes_a_line_above_each_row_and_no_frame_away(tmp_path: Path) -> None:
    frames = np.full((6, 24, 32, 3), (10, 200, 30), dtype=np.uint8)
    flows = np.zeros((6, 24, 32, 2))
    for name, headings in (("plain.png", ()), ("headed.png", ("clip $a$, class b, split c", ""))):
        contact_sheet(frames, flows, tmp_path / name, max_px=20, headings=headings, columns=3)
    plain, headed = imread(tmp_path / "plain.png"), imread(tmp_path / "headed.png")
    assert headed.shape[0] == pytest.approx(plain.shape[0] + 2 * 0.25 * 120, abs=2)
    colour = (10 / 255, 200 / 255, 30 / 255)
    assert num_pixels(tmp_path / "headed.png", colour) == pytest.approx(
        num_pixels(tmp_path / "plain.png", colour), rel=0.1
    )
