"""Pictures of an explanation: frames and coloured flow lit by class activations, and which snippets are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twostream_ray import visualize
from twostream_ray.explanation import ExplainedSnippet

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""


def chosen_snippets(snippets: Sequence[ExplainedSnippet], count: int) -> list[ExplainedSnippet]:
    """At most so many, evenly over those of different seconds."""
    each = list({snippet.seconds: snippet for snippet in snippets}.values())
    if len(each) <= count:
        return each
    return [each[(2 * number + 1) * len(each) // (2 * count)] for number in range(count)]


def lit_pictures(snippet: ExplainedSnippet, layer: str, *, max_px: float) -> dict[str, Picture]:
    """The frame and the motion that there are, lit by a layer's activation, by what they show."""
    shown = plain_pictures(snippet, max_px=max_px)
    return {what: visualize.activation_picture(picture, snippet.activations[layer]) for what, picture in shown.items()}


def plain_pictures(snippet: ExplainedSnippet, *, max_px: float) -> dict[str, Picture]:
    """The frame and the motion that there are, as `frame` and `motion`; full colour is a motion of max_px."""
    shown: dict[str, Picture] = {}
    if snippet.rgb is not None:
        shown["frame"] = snippet.rgb
    if snippet.flow is not None:
        shown["motion"] = visualize.flow_colour(snippet.flow, max_px=max_px)
    return shown


def fastest_px(snippets: Sequence[ExplainedSnippet]) -> float:
    """The displacement that gets the full colour: a few pixels of wild flow must not make all others pale."""
    lengths = [np.linalg.norm(snippet.flow, axis=-1) for snippet in snippets if snippet.flow is not None]
    return max(1.0, float(np.quantile(np.stack(lengths), 0.98))) if lengths else 1.0
