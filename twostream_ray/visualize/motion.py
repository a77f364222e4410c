"""Optical flow visualisation: Middlebury colour coding (Baker et al. 2011), contact sheets of frames over flow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from twostream_ray.redaction import printable
from twostream_ray.visualize.figures import save

_WHEEL_KNOTS = (0, 15, 21, 25, 36, 49, 55)
"""Indices of red, yellow, green, cyan, blue, magenta and again red on the wheel of 55 hues (Baker et al. 2011)."""
_WHEEL_COLOURS = np.array([(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)], dtype=float)
_HEADING_INCHES = 0.25
_UNKNOWN_FLOW_PX = 1e9
"""Middlebury's ground truth marks a pixel of unknown flow with a larger value than this."""


def flow_colour(flow: NDArray[np.floating], *, max_px: float) -> NDArray[np.uint8]:
    """Flow in Middlebury's colours: hue is the direction, white is no motion, full colour is max_px.

    Motion beyond max_px is darker; unknown flow (not finite, or above 1e9) is black.

    Args:
        flow: (H, W, 2) displacement in px, x to the right, y down.
        max_px: length of the displacement that gets the full colour, above 0.

    Returns:
        (H, W, 3) RGB.
    """
    known = np.isfinite(flow).all(axis=-1) & (np.abs(flow) < _UNKNOWN_FLOW_PX).all(axis=-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0.0) / max_px, -1, 0)
    length = np.hypot(x, y)[..., None]
    # The wheel starts with red at motion to the right and has 54 steps, as the reference pictures do.
    position = (np.arctan2(-y, -x) / np.pi + 1) / 2 * 54
    hue = np.stack([np.interp(position, _WHEEL_KNOTS, channel) for channel in _WHEEL_COLOURS.T], axis=-1)
    colour = np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return (255 * colour * known[..., None]).astype(np.uint8)


def contact_sheet(
    frames: NDArray[np.uint8],
    flows: NDArray[np.floating],
    path: Path,
    *,
    max_px: float,
    captions: Sequence[str] = (),
    headings: Sequence[str] = (),
    columns: int = 8,
) -> None:
    """Draw frames above their flow as a PNG, with a colour key, to inspect a network's inputs.

    Args:
        frames: (T, H, W, 3) RGB.
        flows: (T, H, W, 2) displacement in px of each frame; its H and W may differ from the frames'.
        path: the PNG to write.
        max_px: displacement that gets the full colour.
        captions: T lines above the frames, such as "1.2 s"; none are written where there are none.
        headings: a line above each row of frames; none are written where there are none, or an empty one.
        columns: frames per row.
    """
    columns = min(columns, len(frames))
    bands = -(-len(frames) // columns)
    width = 1.6
    height = width * frames.shape[1] / frames.shape[2]
    lines = [_HEADING_INCHES if any(headings) else 0.0, height, height]
    figure = Figure(figsize=(width * columns + 1.5, bands * (sum(lines) + 0.3)), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0.0, hspace=0.0)
    grid = figure.add_gridspec(
        3 * bands,
        columns + 1,
        width_ratios=[width] * columns + [1.5],
        height_ratios=[max(one, 1e-3) for one in lines] * bands,
    )
    for index, (frame, flow) in enumerate(zip(frames, flows, strict=True)):
        band, column = divmod(index, columns)
        above, below = (figure.add_subplot(grid[3 * band + row, column]) for row in (1, 2))
        above.imshow(frame)
        below.imshow(flow_colour(flow, max_px=max_px))
        if captions:
            above.set_title(printable(captions[index]), fontsize=8)
    for band, heading in enumerate(headings):
        line = figure.add_subplot(grid[3 * band, :columns])
        line.text(0, 0, printable(heading), fontsize=9, weight="bold", va="bottom", parse_math=False)
    key = figure.add_subplot(grid[1:3, columns])
    reach = np.linspace(-1, 1, 241)
    disc = np.stack(np.meshgrid(reach, reach), axis=-1)
    inside = np.hypot(disc[..., 0], disc[..., 1]) <= 1
    key.imshow(np.where(inside[..., None], flow_colour(disc, max_px=1), 255).astype(np.uint8))
    key.text(
        0.5, -0.02, f"motion,\n{max_px:g} px at the rim", transform=key.transAxes, ha="center", va="top", fontsize=8
    )
    for axes in figure.axes:
        axes.set_axis_off()
    save(figure, path)


def thumbnail(frame: NDArray[np.uint8], path: Path, *, longest_px: int = 200) -> None:
    """Write a frame (H, W, 3) as a small PNG by taking every n-th pixel, with no side longer than longest_px."""
    every = -(-max(frame.shape[:2]) // longest_px)
    imsave(path, np.ascontiguousarray(frame[::every, ::every]), format="png")
