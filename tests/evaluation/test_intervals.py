import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.intervals import (
    FEWEST_UNITS,
    Interval,
    bootstrap_intervals,
    metric_intervals,
    wilson_intervals,
)
from twostream_ray.evaluation.metrics import top_k_hits


def hits_in_groups(
    seed: int, *, num_groups: int, clips_per_group: int = 8, accuracy: float = 0.85, correlation: float = 0.3
) -> tuple[NDArray[np.bool_], list[str]]:
    """Clips of a group are right together more often than not: each group's accuracy is drawn (beta-binomial)."""
    random = np.random.default_rng(seed)
    strength = 1 / correlation - 1
    of_groups = random.beta(accuracy * strength, (1 - accuracy) * strength, size=num_groups)
    hits = random.random((num_groups, clips_per_group)) < of_groups[:, None]
    return hits.ravel(), [f"g{group}" for group in range(num_groups) for _ in range(clips_per_group)]


def top1_interval(hits: NDArray[np.bool_], groups: list[str] | None) -> Interval:
    return metric_intervals(hits, None, np.zeros(len(hits), int), num_classes=1, groups=groups).top1


def test_the_interval_over_groups_is_wider_by_what_clips_of_a_group_have_in_common() -> None:
    ratios = []
    for seed in range(20):
        hits, groups = hits_in_groups(seed, num_groups=80)
        by_group, by_clip = top1_interval(hits, groups), top1_interval(hits, None)
        ratios.append((by_group.high - by_group.low) / (by_clip.high - by_clip.low))
    # Kish's design effect of 8 clips that correlate by .3.
    assert min(ratios) > 1.2 and np.mean(ratios) == pytest.approx(math.sqrt(1 + 7 * 0.3), rel=0.08)


def test_an_interval_over_groups_of_one_clip_each_is_that_over_clips() -> None:
    hits = np.arange(300) % 4 > 0
    by_group, by_clip = top1_interval(hits, [str(clip) for clip in range(300)]), top1_interval(hits, None)
    assert tuple(by_group) == pytest.approx(tuple(by_clip), abs=0.011)


def test_the_interval_over_clips_is_as_wide_as_theory_says() -> None:
    hits = np.arange(2000) % 5 > 0
    low, high = top1_interval(hits, None)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.002)


@pytest.mark.parametrize(("num_groups", "accuracy"), [(30, 0.8), pytest.param(101, 0.9, marks=pytest.mark.slow)])
def test_95_of_100_intervals_over_groups_hold_the_truth_and_those_over_clips_do_not(
    num_groups: int, accuracy: float
) -> None:
    held: dict[str, list[bool]] = {"groups": [], "clips": []}
    for seed in range(400):
        hits, groups = hits_in_groups(seed, num_groups=num_groups, accuracy=accuracy)
        for over, given in (("groups", groups), ("clips", None)):
            if over == "groups" or seed % 5 == 0:
                low, high = top1_interval(hits, given)
                held[over].append(low <= accuracy <= high)
    assert np.mean(held["groups"]) == pytest.approx(0.95, abs=0.02)
    assert np.mean(held["clips"]) < 0.85


def test_few_units_are_said_not_to_be_trusted() -> None:
    for num_groups in (FEWEST_UNITS - 1, FEWEST_UNITS):
        hits, groups = hits_in_groups(0, num_groups=num_groups)
        found = metric_intervals(hits, None, np.zeros(len(hits), int), num_classes=1, groups=groups)
        assert (found.over, found.num_units, found.is_trusted) == ("groups", num_groups, num_groups == FEWEST_UNITS)
        assert found.to_dict()["trusted"] == (num_groups == FEWEST_UNITS)


def test_top_5_and_mean_class_have_intervals_around_their_values() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(7, size=600)
    top5 = random.random(600) < 0.95
    top1 = top5 & (random.random(600) < 0.4 + labels / 14)
    found = metric_intervals(top1, top5, labels, num_classes=7)
    mean_class = np.mean([top1[labels == label].mean() for label in range(7)])
    assert found.top5 is not None
    for interval, value in ((found.top1, top1.mean()), (found.top5, top5.mean()), (found.mean_class, mean_class)):
        assert interval.low < value < interval.high and interval.high - interval.low < 0.1
    assert found.to_dict()["top5"] == list(found.top5)


def test_the_same_clips_have_the_same_interval() -> None:
    hits, groups = hits_in_groups(0, num_groups=30)
    assert top1_interval(hits, groups) == top1_interval(hits, groups)
    assert top1_interval(hits, groups).to_text().startswith("[")


def test_where_every_clip_is_right_the_interval_is_the_exact_binomials() -> None:
    assert top1_interval(np.ones(400, bool), None) == pytest.approx((0.9908, 1.0), abs=1e-4)
    assert top1_interval(np.zeros(400, bool), None) == pytest.approx((0.0, 0.0092), abs=1e-4)
    # Ten groups of clips that are all alike are ten independent looks, not forty.
    assert top1_interval(np.ones(40, bool), [str(clip // 4) for clip in range(40)]).low == pytest.approx(
        0.6915, abs=1e-4
    )


def test_of_one_unit_nothing_is_known() -> None:
    assert top1_interval(np.array([True, False, True]), ["a"] * 3) == (0, 1)


def test_many_classes_and_groups_are_drawn_in_parts_to_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, groups = hits_in_groups(0, num_groups=30)
    whole = top1_interval(hits, groups)
    monkeypatch.setattr("twostream_ray.evaluation.intervals._CELLS", 1000)
    assert top1_interval(hits, groups) == whole


def test_wilsons_interval_is_that_of_the_literature() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    found = wilson_intervals([81, 15, 0, 1], [263, 148, 20, 29])
    known = [[0.2553, 0.3662], [0.0624, 0.1605], [0, 0.1611], [0.0061, 0.1718]]
    np.testing.assert_allclose(found, known, atol=5e-5)
    assert wilson_intervals([0], [0]).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": np.zeros(2, int)}, "wanted hits and labels of the same clips"),
        ({"groups": ["a"]}, "wanted the group of each of 3 clips, got 1"),
    ],
)
def test_hits_that_do_not_go_together_are_refused(more: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"labels": np.zeros(3, int)} | more
    with pytest.raises(TrainingError, match=message):
        metric_intervals(np.ones(3, bool), None, given.pop("labels"), num_classes=1, **given)


def test_any_statistic_of_counts_has_an_interval() -> None:
    outcomes = np.arange(1000) % 2
    (found,) = bootstrap_intervals(
        outcomes, lambda counts: (counts[:, :1] - counts[:, 1:]) / 1000, num_outcomes=2, bounds=(-1, 1)
    )
    assert found == pytest.approx((-0.062, 0.062), abs=0.006)


@pytest.mark.real
@pytest.mark.parametrize(
    ("streams", "wanted"),
    [
        (("spatial",), ("81.26%", "[80.0, 82.5]", "[78.7, 83.6]", "[78.7, 83.1]")),
        (("temporal",), ("79.67%", "[78.5, 81.0]", "[77.3, 82.2]", "[77.4, 81.8]")),
        (("spatial", "temporal"), ("88.08%", "[87.0, 89.1]", "[86.0, 89.9]", "[86.2, 89.8]")),
    ],
)
def test_published_scores_have_the_intervals_that_the_documentation_shows(
    ucf101: dict[str, Any], streams: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    labels, names = ucf101["label"], ucf101["names"]
    scores = np.sum([ucf101[stream].astype(np.float64) for stream in streams], axis=0)
    hits, within5 = (top_k_hits(scores, labels, k=k) for k in (1, 5))
    groups = [str(name).rpartition("_c")[0] for name in names]  # Archery_g01_c02 is the second cut of one video
    over_clips, over_groups = (
        metric_intervals(hits, within5, labels, num_classes=101, groups=given) for given in (None, groups)
    )
    assert over_groups.num_units == 707
    shown = (over_clips.top1.to_text(), over_groups.top1.to_text(), over_groups.mean_class.to_text())
    assert (f"{hits.mean():.2%}", *shown) == wanted
