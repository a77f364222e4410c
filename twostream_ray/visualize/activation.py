"""Class activation maps over pictures: bright where the network looked, dim elsewhere, a line at half the maximum."""

import io

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

_DIMMEST = 0.3
"""Of a pixel's level where nothing is active: hues stay, as in coloured flow they mean directions."""
_LINE = np.array([255, 0, 160], np.uint8)
"""A colour that neither skin, grass nor sky has."""


def activation_picture(picture: NDArray[np.uint8], activation: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A picture lit by an activation.

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
