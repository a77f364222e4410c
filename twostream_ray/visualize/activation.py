"""Class activation map overlay: bright where activation is high, dim elsewhere, with a contour at half the maximum."""

import io

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

_DIMMEST = 0.3
"""Brightness factor at zero activation; hues are kept, because they encode directions in coloured flow."""
_LINE = np.array([255, 0, 160], np.uint8)
"""Contour colour, rare in natural images."""


def activation_picture(picture: NDArray[np.uint8], activation: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Overlay an activation map on an image.

    Args:
        picture: (H, W, 3) RGB.
        activation: (H, W) in [0, 1].

    Returns:
        (H, W, 3) RGB.
    """
    light = _DIMMEST + (1 - _DIMMEST) * np.sqrt(np.clip(activation, 0, 1))
    lit = np.rint(picture * light[..., None]).astype(np.uint8)
    inside = activation >= 0.5
    edge = np.zeros_like(inside)
    edge[:-1] |= inside[:-1] ^ inside[1:]
    edge[:, :-1] |= inside[:, :-1] ^ inside[:, 1:]
    lit[edge] = _LINE
    return lit


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) RGB as a PNG file."""
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(picture), format="png")
    return file.getvalue()
