import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.metrics import top_k_hits
from twostream_ray.evaluation.report import Report, report_on
from twostream_ray.heads import Head, softmax


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            np.zeros((0, 3)),
            np.zeros(0, int),
            r"nothing to evaluate: wanted at least 1 clip and 1 class, got \(0, 3\)",
        ),
        (np.zeros((2, 3)), [0], r"wanted scores \(N, K\) and labels \(N,\), got shapes \(2, 3\) and \(1,\)"),
        (np.zeros((2, 3)), [0, 3], r"wanted whole labels from 0 to 2, got int64 from 0 to 3"),
        (np.zeros((2, 3)), [0.0, 1.0], r"wanted whole labels from 0 to 2, got float64"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), [0, 1], r"wanted finite scores, got nan in row 1 and 1 rows like it"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused(scores: NDArray[Any], labels: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        top_k_hits(scores, labels, k=1)


def small_report(n_expected: int = 4) -> Report:
    scores = np.eye(3)[[0, 1, 1, 1]]
    return report_on(scores, [0, 1, 0, 0], classes=("run", "walk", "jump"), n_expected=n_expected)


def test_a_report_says_of_how_many_clips_it_speaks() -> None:
    assert small_report(n_expected=5).coverage == "4 of 5 clips"
    assert "4 of 5 clips" in small_report(n_expected=5).to_text()
    with pytest.raises(TrainingError, match="the split has 3 clips, got scores of 4: some were scored twice"):
        small_report(n_expected=3)
    with pytest.raises(TrainingError, match="wanted scores of 2 classes, got 3"):
        report_on(np.eye(3), [0, 1, 2], classes=("a", "b"), n_expected=3)


def test_a_report_lists_the_weakest_classes_first_and_what_they_are_taken_for() -> None:
    report = small_report()
    assert [(row.name, row.num_correct, row.num_clips, row.taken_for) for row in report.per_class()] == [
        ("run", 1, 3, "walk"),
        ("walk", 1, 1, None),
        ("jump", 0, 0, None),
    ]
    assert report.per_class()[2].accuracy is None
    assert report.to_text() == (
        "top-1 50.00% [0.0, 100.0]   mean class 66.67% [0.0, 100.0]   4 of 4 clips\n"
        "in brackets: 95% interval, bootstrap over clips; 4 are few: take it as a rough one\n"
        "mean class: mean of the accuracies of the 2 of 3 classes that have a clip here\n"
        "\n"
        "class  correct  of clips  accuracy  most often taken for\n"
        "run          1         3     33.3%  walk\n"
        "walk         1         1    100.0%  -\n"
        "\n"
        "most confused:\n"
        "2 of 3 clips of run were taken for walk"
    )
    assert "(1 stronger classes follow)" in report.to_text(num_rows=1)


def test_a_report_has_intervals_over_clips_and_over_groups_where_clips_share_any() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(8, size=400)
    scores = random.normal(size=(400, 8)) + 2 * np.eye(8)[labels]
    groups = [f"g{clip // 8}" for clip in range(400)]
    given: dict[str, Any] = {"classes": tuple("abcdefgh"), "n_expected": 403}
    report = report_on(scores, labels, groups=groups, probabilities=softmax(scores), **given)
    over_clips, over_groups = report.intervals
    assert (over_clips.over, over_groups.over, over_groups.num_units) == ("clips", "groups", 50)
    for one in report.intervals:
        assert one.top5 is not None and report.top5 is not None
        assert one.top1.low < report.top1 < one.top1.high and one.top5.low < report.top5 < one.top5.high
    assert report.reliability is not None
    first, second, third, fourth, fifth = report.metrics_text()
    assert first == (
        f"top-1 {report.top1:.2%} {over_clips.top1.to_text()}   top-5 {report.top5:.2%} {over_clips.top5.to_text()}"
        f"   mean class {report.mean_class:.2%} {over_clips.mean_class.to_text()}   400 of 403 clips"
    )
    assert second == "in brackets: 95% interval, bootstrap over clips"
    assert third.startswith(f"over 50 groups (clips of one source count together): top-1 {over_groups.top1.to_text()}")
    assert fourth == "mean class: mean of the accuracies of the 8 of 8 classes that have a clip here"
    assert fifth.startswith(f"ECE {report.reliability.ece:.2%}: ")


def test_a_clip_without_a_group_is_one_of_its_own_and_groups_that_nothing_shares_say_nothing() -> None:
    scores, labels = np.eye(4), np.arange(4)
    given: dict[str, Any] = {"classes": tuple("abcd"), "n_expected": 4}
    shared = report_on(scores, labels, groups=["x", "x", None, None], **given).intervals
    assert [(one.over, one.num_units) for one in shared] == [("clips", 4), ("groups", 3)]
    for groups in (None, [None] * 4, list("wxyz")):
        assert [one.over for one in report_on(scores, labels, groups=groups, **given).intervals] == ["clips"]
    with pytest.raises(TrainingError, match="wanted the group of each of 4 clips, got 3"):
        report_on(scores, labels, groups=["x", "x", "y"], **given)


def test_the_most_confused_pairs_are_those_of_the_most_clips() -> None:
    labels, taken = np.repeat([0, 1, 2], [5, 4, 3]), [1, 1, 1, 2, 0, 0, 0, 0, 1, 2, 2, 2]
    report = report_on(np.eye(3)[taken], labels, classes=("run", "walk", "jump"), n_expected=12)
    assert [pair.sentence() for pair in report.most_confused()] == [
        "3 of 5 clips of run were taken for walk",
        "3 of 4 clips of walk were taken for run",
        "1 of 5 clips of run were taken for jump",
    ]
    assert len(report.most_confused(num_pairs=1)) == 1


def test_top_5_is_left_out_where_it_would_always_be_right() -> None:
    for num_classes, top5 in ((5, None), (6, 5 / 6)):
        scores = np.tile(np.arange(num_classes, 0, -1), (num_classes, 1))
        names = tuple(f"class {label}" for label in range(num_classes))
        report = report_on(scores, np.arange(num_classes), classes=names, n_expected=num_classes)
        assert report.top5 == top5
        assert ("top-5" in report.to_text()) == (top5 is not None)


def two_data_sets(**more: Any) -> Report:
    """Two clips of classes a and b, three of classes c to i; scores of the other data set are larger than all."""
    labels = np.array([0, 1, 2, 3, 4])
    scores = np.full((5, 9), 9.0)
    scores[:2, :2], scores[2:, 2:] = [[1, 0], [1, 0]], np.eye(7)[[0, 1, 1]]
    heads = (Head(name="u", start=0, stop=2), Head(name="long", start=2, stop=9))
    return report_on(
        scores, labels, classes=tuple("abcdefghi"), n_expected=6, heads=heads, **({"expected_by_head": (3, 3)} | more)
    )


def test_a_report_has_a_line_and_metrics_for_each_data_set_by_its_own_classes() -> None:
    report = two_data_sets()
    assert report.top1 == 3 / 5 and report.top5 is None  # of 2 classes, one of the 5 best is always right
    assert [(head.name, head.top1, head.top5, head.coverage) for head in report.heads] == [
        ("u", 1 / 2, None, "2 of 3 clips"),
        ("long", 2 / 3, 1.0, "3 of 3 clips"),
    ]
    assert [line.replace(" [0.0, 100.0]", "") for line in report.to_text().splitlines()[:3]] == [
        "top-1 60.00%   mean class 60.00%   5 of 6 clips",
        "u      top-1 50.00%   mean class 50.00%   2 of 3 clips",
        "long   top-1 66.67%   top-5 100.00% [29.2, 100.0]   mean class 66.67%   3 of 3 clips",
    ]
    assert json.loads(json.dumps(report.to_dict()))["heads"][1] == {
        "name": "long",
        "n_evaluated": 3,
        "n_expected": 3,
        "top1": pytest.approx(2 / 3),
        "top5": 1.0,
        "mean_class": pytest.approx(2 / 3),
        "intervals": [report.heads[1].intervals[0].to_dict()],
    }


def test_a_data_set_says_where_its_quarantine_is_not_counted_and_where_no_clip_was_scored() -> None:
    unknown = two_data_sets(expected_by_head=(None, None)).heads[0]
    assert unknown.coverage == "2 clips and those in quarantine, which are not counted by data set"
    heads = (Head(name="u", start=0, stop=3), Head(name="h", start=3, stop=4))
    none = report_on(
        np.eye(4)[:2], [0, 1], classes=tuple("abcd"), n_expected=3, heads=heads, expected_by_head=(2, 1)
    ).heads[1]
    assert none.top1 is None and none.to_text() == "no clip of it was scored, 0 of 1 clips"


def test_a_report_is_json() -> None:
    assert json.loads(json.dumps(small_report().to_dict())) == {
        "n_evaluated": 4,
        "n_expected": 4,
        "top1": 0.5,
        "top5": None,
        "mean_class": pytest.approx(2 / 3),
        "classes": ["run", "walk", "jump"],
        "confusion": [[1, 2, 0], [0, 1, 0], [0, 0, 0]],
        "heads": [],
        "mean_class_definition": "mean of the accuracies of the 2 of 3 classes that have a clip here",
        "intervals": [small_report().intervals[0].to_dict()],
        "calibration": None,
        "most_confused": [{"name": "run", "taken_for": "walk", "count": 2, "num_clips": 3}],
        "per_class": [row.to_dict() for row in small_report().per_class()],
    }
