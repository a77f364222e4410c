"""HTML report, or video, of an explained prediction: Grad-CAM pictures, stream shares, and occlusion in time."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from twostream_ray import visualize
from twostream_ray.data.video.clips import ClipWriter
from twostream_ray.errors import ConfigError
from twostream_ray.explanation import Explanation
from twostream_ray.explanation_pictures import Picture, chosen_snippets, fastest_px, lit_pictures
from twostream_ray.redaction import printable
from twostream_ray.runs.score.html_page import (
    Markup,
    bars,
    element,
    html_page,
    items,
    number_cards,
    paragraph,
    pictures,
)

STREAMS = {"spatial": "appearance", "temporal": "motion"}
"""Readers' names of the streams."""
_TITLES = {
    "spatial": "Where it looked: appearance",
    "temporal": "Where it looked: motion",
    "fused": "Where it looked after the fusion of both streams",
}
_FRAMES_PER_SECOND = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasons:
    """A prediction and its explanation."""

    video: str
    """As named by the user."""
    model: str
    """As named by the user."""
    label: str
    """The explained class."""
    best: str
    """The predicted class."""
    probability: float
    """Of the label, in [0, 1]."""
    duration_seconds: float
    """Of the video."""
    explanation: Explanation
    """Why."""

    def sentence(self) -> str:
        """The prediction and the streams' shares, in a sentence."""
        shares = " and ".join(f"{share:.0%} {STREAMS[name]}" for name, share in self.explanation.streams.shares.items())
        other = "" if self.label == self.best else f" (predicted: {self.best})"
        return printable(f"{self.video}: {self.label} {self.probability:.3f}{other}, of {shares}")


def explanation_page(reasons: Reasons, *, moments: int) -> bytes:
    """The page, with pictures of at most `moments` snippets."""
    found = reasons.explanation
    right = reasons.label == reasons.best
    title = f"Why this is {reasons.label}" if right else f"Evidence for {reasons.label}"
    cards = [(reasons.label, f"{reasons.probability:.1%}", "probability" if right else f"predicted: {reasons.best}")]
    cards += [
        (STREAMS[name], f"{share:.0%}", "of the influence on the class") for name, share in found.streams.shares.items()
    ]
    return html_page(
        title,
        paragraph(f"{reasons.video}, {reasons.duration_seconds:.1f} s, by {reasons.model}", quiet=True),
        number_cards(cards),
        *_streams(reasons),
        *_seconds(reasons),
        *_activations(found, moments=moments),
        *_definitions(found),
    )


def _streams(reasons: Reasons) -> list[Markup]:
    streams = reasons.explanation.streams
    start = "With a grey picture and no motion the class has"
    if streams.method == "shapley":
        start = "On other clips the class has, on average,"
        how = "Shapley values of the streams, with other clips as the baseline: these numbers add up exactly."
    elif streams.method == "exact":
        how = "These numbers are exact: in this network the contributions of the streams are summed."
    else:
        how = f"By integrated gradients; they add up to the difference except for {streams.gap:.2%}."
        if not streams.is_complete:
            how += " That is more than 1 %, so the shares are rough."
    return [
        element("h2", "Appearance or motion"),
        paragraph(
            f"{start} a relative logit of {streams.baseline:+.2f}; with this "
            f"video it has {streams.logit:+.2f}. What each stream adds:"
        ),
        bars((STREAMS[name], value, f"{value:+.2f}") for name, value in streams.by_stream.items()),
        paragraph(how, quiet=True),
    ]


def _seconds(reasons: Reasons) -> list[Markup]:
    found = reasons.explanation
    pairs = list(zip(found.seconds, found.falls, strict=True))
    best, fall = max(pairs, key=lambda pair: pair[1])
    most = f"Most depends on {best:.2f} s. " if fall > 0 else ""
    return [
        element("h2", "Which seconds matter"),
        paragraph(
            f"{most}Occlusion: how far the relative logit falls when frame and motion around a second are hidden; grey "
            "bars: it rises, so this second is evidence against the class."
        ),
        bars((f"{second:.2f} s", value, f"{value:+.3f}") for second, value in pairs),
    ]


def _activations(found: Explanation, *, moments: int) -> list[Markup]:
    chosen = chosen_snippets(found.snippets, moments)
    content: list[Markup] = []
    for layer, title in _TITLES.items():
        if layer in found.missing:
            content += [element("h2", title), paragraph(f"Not shown: {found.missing[layer]}.", quiet=True)]
            continue
        shown = [
            (visualize.png(picture), f"{snippet.seconds:.2f} s, {what}")
            for snippet in chosen
            if layer in snippet.activations
            for what, picture in lit_pictures(snippet, layer, max_px=fastest_px(found.snippets)).items()
        ]
        if shown:
            content += [element("h2", title), pictures(shown)]
    return content


def _definitions(found: Explanation) -> list[Markup]:
    lines = [
        "Relative logit: the class's logit, averaged over the towers, minus the mean logit of all classes.",
        "Activation (Grad-CAM, Selvaraju et al. 2017): bright where a layer's maps support the class; the line is at "
        "half of the largest activation in the same view. Layers are coarser than pictures.",
        "Motion in colours: the hue is the direction (red right, yellow down, blue left, magenta up), white is no "
        f"motion, full colour is {fastest_px(found.snippets):.1f} px from one frame to the next.",
        "Shares: each stream's absolute contribution to the relative logit, divided by their sum.",
    ]
    return [element("h2", "Definitions"), items(lines)]


def explanation_video(reasons: Reasons, *, mark: str) -> bytes:
    """An MP4 of all snippets, two per second: a column for each layer, RGB above motion; ends with `mark`.

    Raises:
        ConfigError: no layer has activations.
    """
    found = reasons.explanation
    if not any(snippet.activations for snippet in found.snippets):
        why = "; ".join(f"{layer}: {reason}" for layer, reason in found.missing.items())
        raise ConfigError(f"a video shows activations of layers, but there are none ({why}): name an .html file")
    frames = []
    for snippet in found.snippets:
        columns = [
            np.concatenate(list(lit_pictures(snippet, layer, max_px=fastest_px(found.snippets)).values()))
            for layer in snippet.activations
        ]
        frames.append(_even(np.concatenate(columns, axis=1)))
    height, width = frames[0].shape[:2]
    writer = ClipWriter(width=width, height=height, fps=Fraction(_FRAMES_PER_SECOND))
    for frame in frames:
        writer.write(frame)
    # An MP4 box that players ignore.
    return writer.finish() + struct.pack(">I4s", 8 + len(mark), b"free") + mark.encode("ascii")


def _even(picture: Picture) -> Picture:
    """Repeat the last row or column if the height or width is odd, which H.264 does not allow."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
