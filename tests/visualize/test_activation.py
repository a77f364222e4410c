import io

import numpy as np
from matplotlib.image import imread

from twostream_ray.visualize import activation_picture, png


def test_where_a_network_looked_is_as_bright_as_the_picture_and_the_rest_dimmer_in_the_same_hue() -> None:
    picture = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    activation = np.zeros((4, 6))
    activation[:, 3:] = 1
    lit = activation_picture(picture, activation)
    assert lit.shape == picture.shape and lit.dtype == np.uint8
    assert lit[0, 5].tolist() == [200, 100, 50]
    assert lit[0, 0].tolist() == [60, 30, 15]
    assert (lit[:, 2] == lit[0, 2]).all() and lit[0, 2].tolist() not in ([60, 30, 15], [200, 100, 50])  # the line


def test_no_activation_has_no_line() -> None:
    picture = np.full((4, 6, 3), 100, np.uint8)
    assert (activation_picture(picture, np.zeros((4, 6))) == 30).all()


def test_a_png_holds_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = imread(io.BytesIO(png(picture)), format="png")[..., :3]
    np.testing.assert_array_equal(np.rint(found * 255).astype(np.uint8), picture)
