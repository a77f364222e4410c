"""What a PNG shows, in pixels."""

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread


def num_pixels(path: Path, colour: str | tuple[float, float, float]) -> int:
    """Pixels of a PNG that have this colour, to a level or two."""
    return int((np.abs(imread(path)[..., :3] - np.array(to_rgb(colour))) < 0.01).all(axis=-1).sum())
