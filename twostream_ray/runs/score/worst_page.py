"""HTML report of an evaluation's worst mistakes: explanations of label and prediction, clip by clip."""

from __future__ import annotations

from collections.abc import Sequence

from twostream_ray import visualize
from twostream_ray.explanation import ExplainedSnippet, Explanation
from twostream_ray.explanation_pictures import fastest_px, lit_pictures
from twostream_ray.runs.score.explanation_page import STREAMS
from twostream_ray.runs.score.html_page import Markup, bars, element, html_page, items, paragraph, pictures, table
from twostream_ray.runs.score.worst_mistakes import ExplainedMistake, ExplainedMistakes

_PICTURED = {"spatial": ("frame",), "temporal": ("motion",), "fused": ("frame", "motion")}
"""The pictures that a layer's activation is drawn over: its stream's input."""


def worst_page(found: ExplainedMistakes, *, moments: int) -> bytes:
    """The page, with pictures of at most `moments` snippets for each class of a clip."""
    about, classes = found.scores.about, found.scores.about.classes
    rows = [
        (
            one.mistake.clip_id,
            classes[one.mistake.label],
            (f"{one.mistake.label_probability:.1%}", one.mistake.label_probability),
            classes[one.mistake.predicted],
            (f"{one.mistake.probability:.1%}", one.mistake.probability),
        )
        for one in found.worst
    ]
    return html_page(
        f"Worst mistakes on split {about.split}",
        paragraph(
            f"{found.num_mistakes} of {len(found.scores.labels)} clips are predicted as another class than their "
            f"label; these are the {len(found.worst)} where {found.model} is most confident. Look at them one by one: "
            "if a picture shows the predicted class, the label is wrong."
        ),
        table(("clip", "label", "probability", "predicted", "probability"), rows),
        *[markup for one in found.worst for markup in _clip(one, classes, moments=moments)],
        element("h2", "Definitions"),
        items(
            [
                "Order: the label's probability minus that of the predicted class, smallest first.",
                f"Probabilities are those of the evaluation, by protocol {about.protocol['name']}.",
                "Streams: what appearance and motion add to the class's relative logit (its logit, averaged over the "
                "towers, minus the mean logit of all classes), with other clips of the split as the baseline (Shapley "
                "values).",
                "Pictures: at the seconds without which the relative logit falls most; bright where a layer's maps "
                "support the class (Grad-CAM), the line is at half of the largest activation in the same view.",
            ]
        ),
    )


def _clip(one: ExplainedMistake, classes: Sequence[str], *, moments: int) -> list[Markup]:
    mistake = one.mistake
    label, answer = classes[mistake.label], classes[mistake.predicted]
    return [
        element("h2", mistake.clip_id),
        paragraph(
            f"Labelled {label} ({mistake.label_probability:.1%}), predicted {answer} ({mistake.probability:.1%})."
        ),
        pictures([(visualize.png(one.frame), "middle frame")]),
        *_reasons(f"Evidence for the label, {label}", one.for_label, moments=moments),
        *_reasons(f"Evidence for the prediction, {answer}", one.for_answer, moments=moments),
    ]


def _reasons(title: str, found: Explanation, *, moments: int) -> list[Markup]:
    streams = found.streams
    chosen = most_important(found, moments)
    shown = [
        (visualize.png(drawn[what]), f"{snippet.seconds:.2f} s, {layer}, {what}")
        for snippet in chosen
        for layer in snippet.activations
        for drawn in [lit_pictures(snippet, layer, max_px=fastest_px(found.snippets))]
        for what in _PICTURED[layer]
        if what in drawn
    ]
    return [
        element("h3", title),
        paragraph(f"Relative logit {streams.baseline:+.2f} on other clips, {streams.logit:+.2f} with this video."),
        bars((STREAMS[name], value, f"{value:+.2f}") for name, value in streams.by_stream.items()),
        *(
            []
            if streams.is_complete
            else [paragraph(f"They add up except for {streams.gap:.2%}, so they are rough.", quiet=True)]
        ),
        pictures(shown),
    ]


def most_important(found: Explanation, count: int) -> list[ExplainedSnippet]:
    """At most `count` snippets of different seconds, those without which the relative logit falls most, by time."""
    falls = dict(zip(found.seconds, found.falls, strict=True))
    each = {snippet.seconds: snippet for snippet in found.snippets}
    best = sorted(each, key=lambda second: -falls[second])[:count]
    return [each[second] for second in sorted(best)]
