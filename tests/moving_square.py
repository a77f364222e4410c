"""A clip whose motion is known: a bright square on texture that moves 2 px to the right and 1 px down per frame."""

from fractions import Fraction

import cv2
import numpy as np

from twostream_ray.data.video.clips import ClipWriter


def moving_square(num_frames: int) -> bytes:
    def smooth(seed: int, low: int, high: int, *shape: int) -> np.ndarray:
        noise = cv2.GaussianBlur(np.random.default_rng(seed).random(shape), (0, 0), 1.5)
        levels = low + (high - low) * (noise - noise.min()) / (noise.max() - noise.min())
        return levels.astype(np.uint8)[..., None].repeat(3, axis=2)

    texture, patch = smooth(0, 60, 120, 64, 80), smooth(1, 160, 255, 16, 16)
    writer = ClipWriter(width=80, height=64, fps=Fraction(25))
    for index in range(num_frames):
        frame = texture.copy()
        frame[4 + index : 20 + index, 6 + 2 * index : 22 + 2 * index] = patch
        writer.write(frame)
    return writer.finish()
