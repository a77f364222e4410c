"""Images of an explanation: frames and coloured flow with class activation overlays, and selection of snippets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twostream_ray import visualize
from twostream_ray.explanation import ExplainedSnippet

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""


def chosen_snippets(snippets: Sequence[ExplainedSnippet], count: int) -> list[ExplainedSnippet]:
    """Select at most `count` snippets of different times, evenly spaced."""
    each = list({snippet.seconds: snippet for snippet in snippets}.values())
    if len(each) <= count:
        return each
    return [each[(2 * number + 1) * len(each) // (2 * count)] for number in range(count)]


def lit_pictures(snippet: ExplainedSnippet, layer: str, *, max_px: float) -> dict[str, Picture]:
    """The available images of `plain_pictures`, each overlaid with a layer's activation map."""
    shown = plain_pictures(snippet, max_px=max_px)
    return {what: visualize.activation_picture(picture, snippet.activations[layer]) for what, picture in shown.items()}


def plain_pictures(snippet: ExplainedSnippet, *, max_px: float) -> dict[str, Picture]:
    """The available images, `frame` and `motion`; flow of max_px has full colour."""
    shown: dict[str, Picture] = {}
    if snippet.rgb is not None:
        shown["frame"] = snippet.rgb
    if snippet.flow is not None:
        shown["motion"] = visualize.flow_colour(snippet.flow, max_px=max_px)
    return shown


def fastest_px(snippets: Sequence[ExplainedSnippet]) -> float:
    """Displacement with full colour: the 98 % quantile, so that outliers do not make all other motion pale."""
    lengths = [np.linalg.norm(snippet.flow, axis=-1) for snippet in snippets if snippet.flow is not None]
    return max(1.0, float(np.quantile(np.stack(lengths), 0.98))) if lengths else 1.0
