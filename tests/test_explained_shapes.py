"""Reasons where they are known: the stream that has the class, and where the red shape is (`docs/explanation.md`)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from shown_shapes import Shapes, accuracy, draw_shapes, trained

from twostream_ray.data.sources.synthetic import Group, SyntheticConfig
from twostream_ray.explanation import activation_layers, class_activations
from twostream_ray.models.build import Network
from twostream_ray.runs.compared_networks import comparisons
from twostream_ray.stream_contributions import (
    Sample,
    StreamContributions,
    shapley_contributions,
    stream_contributions,
)
from twostream_ray.training.settings import TrainingConfig

BINDING = comparisons()["binding"]
LATE = "late: scores averaged"
SMALL = TrainingConfig(epochs=4, global_batch=16, learning_rate=0.1, schedule="cosine", warmup_epochs=1.0)
RIGHT_STREAM = {"appearance": "spatial", "motion": "temporal"}


pytestmark = pytest.mark.usefixtures("one_thread")


def contributions_from(references: Shapes, network: Network, shapes: Shapes) -> list[StreamContributions]:
    """Counted from every 75th training clip."""
    others = [Sample(*references.streams(index)) for index in range(0, len(references.labels), 75)]
    return [
        shapley_contributions(network, Sample(*shapes.streams(index)), others, class_index=int(label))
        for index, label in enumerate(shapes.labels)
    ]


def contributions(network: Network, shapes: Shapes) -> list[StreamContributions]:
    return [
        stream_contributions(network, Sample(*shapes.streams(index)), class_index=int(label))
        for index, label in enumerate(shapes.labels)
    ]


def class_shares(found: list[StreamContributions], shapes: Shapes, *, stream: str) -> list[float]:
    """What a stream moves the logits of each class, as a share of what both move them, over all of its clips."""
    moved = {name: np.abs([one.by_stream[name] for one in found]) for name in ("spatial", "temporal")}
    of_class = [shapes.labels.numpy() == label for label in range(4)]
    return [float(moved[stream][rows].sum() / sum(part[rows].sum() for part in moved.values())) for rows in of_class]


def peaks_on_the_red_shape(network: Network, shapes: Shapes, *, layer: str) -> float:
    """Share of the clips whose largest activation is within the shape's bounding box."""
    layers, _ = activation_layers(network, [layer])
    hits = []
    for index, (label, (y, x, radius)) in enumerate(zip(shapes.labels.tolist(), shapes.red, strict=True)):
        found = class_activations(network, Sample(*shapes.streams(index)), layers=layers, class_index=label)
        peak_y, peak_x = np.unravel_index(found[layer][0].argmax(), found[layer][0].shape)
        hits.append(max(abs(peak_y - y), abs(peak_x - x)) <= radius)
    return float(np.mean(hits))


@pytest.mark.slow
@pytest.mark.parametrize("group", RIGHT_STREAM)
def test_classes_of_one_stream_get_their_share_from_it(group: Group) -> None:
    clips = SyntheticConfig(group=group, train_clips=240, val_clips=0, test_clips=40, size_px=48)
    network = trained(BINDING.networks[LATE], draw_shapes(clips, "train"), SMALL)
    test = draw_shapes(clips, "test")
    assert accuracy(network, test) > 0.9
    assert min(class_shares(contributions(network, test), test, stream=RIGHT_STREAM[group])) > 0.8


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", RIGHT_STREAM)
@pytest.mark.parametrize("name", [LATE, "conv at relu3"])
def test_more_than_80_percent_of_the_shares_are_of_the_right_stream(
    group: Group, name: str, record_property: Callable[[str, object], None]
) -> None:
    clips = replace(BINDING.clips, group=group)
    train, test = draw_shapes(clips, "train"), draw_shapes(clips, "test")
    network = trained(BINDING.networks[name], train, BINDING.training)
    from_others = contributions_from(train, network, test)
    shares = class_shares(from_others, test, stream=RIGHT_STREAM[group])
    record_property("of each class, from other clips", shares)
    assert min(shares) > 0.8
    found = contributions(network, test)
    record_property("of each class", class_shares(found, test, stream=RIGHT_STREAM[group]))
    assert np.mean([one.shares[RIGHT_STREAM[group]] for one in found]) > 0.8
    # From mean RGB without motion, what any motion does to a class counts as this one's.
    assert name != LATE or min(class_shares(found, test, stream=RIGHT_STREAM[group])) > 0.8
    assert all(one.is_complete for one in found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_fused_activation_peaks_on_the_red_shape_and_late_fusions_need_not(
    record_property: Callable[[str, object], None],
) -> None:
    train, test = draw_shapes(BINDING.clips, "train"), draw_shapes(BINDING.clips, "test")
    peaks = {}
    for name in ("conv at relu2", "conv at relu3", "conv at relu4", "sum at relu3"):
        network = trained(BINDING.networks[name], train, BINDING.training)
        peaks[name] = peaks_on_the_red_shape(network, test, layer="fused")
    late = trained(BINDING.networks[LATE], train, BINDING.training)
    record_property("peaks", peaks)
    assert min(peaks.values()) >= 0.95
    assert peaks_on_the_red_shape(late, test, layer="spatial") < 0.5
