import json

import numpy as np
import pytest

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.paired import compare_hits, mcnemar_p

# Ten clips of three classes: what a hand can count.
LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
FIRST = [1, 1, 0, 0, 1, 0, 0, 1, 0, 0]
SECOND = [1, 0, 1, 1, 1, 1, 1, 1, 1, 0]


def test_the_table_of_two_models_is_what_a_hand_counts() -> None:
    found = compare_hits(FIRST, SECOND, LABELS, num_classes=4)
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (3, 1, 5, 1)
    # Six discordant clips, one of them the first's: 2 (C(6,0) + C(6,1)) / 2^6.
    assert found.mcnemar_p == pytest.approx(14 / 64)
    assert (found.first_top1, found.second_top1, found.difference) == pytest.approx((0.4, 0.8, 0.4))
    assert found.first_mean_class == pytest.approx((2 / 4 + 1 / 3 + 1 / 3) / 3)
    assert found.second_mean_class == pytest.approx((3 / 4 + 1 + 2 / 3) / 3)
    rows = [(row.label, row.num_clips, row.first_right, row.second_right) for row in found.classes]
    assert rows == [(0, 4, 2, 3), (1, 3, 1, 3), (2, 3, 1, 2)]
    assert found.classes[1].difference == pytest.approx(2 / 3)
    assert found.over_groups is None


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 2 / 2**5), (5, 5, 1.0), (3, 9, 2 * (1 + 12 + 66 + 220) / 2**12)],
)
def test_mcnemars_exact_p_is_the_binomials(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_p(only_first, only_second) == pytest.approx(p)
    assert mcnemar_p(only_second, only_first) == pytest.approx(p)


def test_the_interval_of_a_difference_is_that_of_discordant_clips_alone() -> None:
    random = np.random.default_rng(0)
    first = random.random(4000) < 0.8
    second = first ^ (random.random(4000) < 0.02)  # they agree on 98 of 100
    found = compare_hits(first, second, np.zeros(4000, int), num_classes=1).over_clips
    discordant = (first != second).mean()
    half = 1.96 * np.sqrt(discordant - (second.mean() - first.mean()) ** 2) / np.sqrt(4000)
    assert found.top1 == pytest.approx((second.mean() - first.mean() + np.array([-half, half])), abs=0.0006)
    assert found.mean_class == pytest.approx(found.top1)
    assert found.top1.high - found.top1.low < 0.01  # each model's own is four times as wide


def test_groups_widen_the_interval_of_a_difference() -> None:
    groups = [f"g{clip // 10}" for clip in range(1000)]
    flipped = np.repeat(np.random.default_rng(0).random(100) < 0.3, 10)
    first, second = ~flipped, flipped | (np.arange(1000) % 2 == 0)
    found = compare_hits(first, second, np.zeros(1000, int), num_classes=1, groups=groups)
    assert found.over_groups is not None and found.over_groups.num_units == 100
    clips, grouped = found.over_clips.top1, found.over_groups.top1
    assert grouped.high - grouped.low > 2 * (clips.high - clips.low)


def test_groups_of_one_clip_each_are_no_groups() -> None:
    assert compare_hits(FIRST, SECOND, LABELS, num_classes=3, groups=list("abcdefghij")).over_groups is None


def test_a_model_beside_itself_has_no_discordant_clip() -> None:
    found = compare_hits(FIRST, FIRST, LABELS, num_classes=3, groups=["a", "b"] * 5)
    assert (found.mcnemar_p, found.difference, found.over_clips.top1) == (1.0, 0.0, (0.0, 0.0))
    assert found.over_groups is not None and not found.over_groups.is_trusted
    assert json.loads(json.dumps(found.over_groups.to_dict()))["top1"] == [0.0, 0.0]


def test_hits_of_other_clips_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"same clips, at least 1, got \(10,\), \(9,\) and labels \(10,\)"):
        compare_hits(FIRST, SECOND[:9], LABELS, num_classes=3)
