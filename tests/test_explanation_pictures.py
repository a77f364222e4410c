import numpy as np

from twostream_ray.explanation import ExplainedSnippet
from twostream_ray.explanation_pictures import chosen_snippets, fastest_px, lit_pictures, plain_pictures


def snippet(seconds: float, **more: object) -> ExplainedSnippet:
    activation = np.zeros((6, 8), np.float32)
    activation[2:4, 3:6] = 1
    streams = {"rgb": np.full((6, 8, 3), 90, np.uint8), "flow": np.ones((6, 8, 2), np.float32)} | more
    return ExplainedSnippet(seconds=seconds, activations={"spatial": activation}, **streams)


def test_pictures_are_chosen_evenly_over_different_seconds() -> None:
    every = [snippet(second / 10) for second in (0, 0, 1, 2, 3, 4, 5, 6, 7)]
    assert [one.seconds for one in chosen_snippets(every, 4)] == [0.1, 0.3, 0.5, 0.7]
    assert len(chosen_snippets(every, 20)) == 8


def test_what_a_network_is_not_shown_has_no_picture() -> None:
    assert list(plain_pictures(snippet(0.2, rgb=None), max_px=1.0)) == ["motion"]
    assert list(lit_pictures(snippet(0.2, flow=None), "spatial", max_px=1.0)) == ["frame"]
    assert fastest_px((snippet(0.2, flow=None),)) == 1.0


def test_a_lit_picture_is_as_bright_as_the_frame_where_the_network_looked_and_dim_elsewhere() -> None:
    frame = lit_pictures(snippet(0.2), "spatial", max_px=1.0)["frame"]
    assert frame[2, 4].tolist() == [90, 90, 90]
    assert frame[5, 0].max() < 45
