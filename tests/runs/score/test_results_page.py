from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_pages import parsed, shown

from twostream_ray import visualize
from twostream_ray.evaluation.report import Report, report_on
from twostream_ray.heads import Head, softmax
from twostream_ray.runs.score.results_page import MeasuredOn, confident_mistakes, results_page

MEASURED = MeasuredOn(
    model="models:/two-stream/3",
    shards="s3://bucket/shards",
    manifest_hash="0a" * 32,
    split="test1",
    protocol="paper_2014: 25 samples of a clip",
    command="twostream evaluate --model models:/two-stream/3 --shards s3://bucket/shards --split test1",
    commit="0d0d0d",
    quarantined=[{"clip_id": "bad<1>.avi", "uri": "s3://x", "reason": "no frame"}],
)


def page_of(
    tmp_path: Path, *, num_classes: int = 4, name: str = "class", n_expected: int = 121, **more: Any
) -> tuple[bytes, Report]:
    random = np.random.default_rng(0)
    labels = np.arange(120) % num_classes
    logits = random.normal(size=(120, num_classes)) + 2 * np.eye(num_classes)[labels]
    classes = tuple(f"{name} {label}" for label in range(num_classes))
    report = report_on(
        logits, labels, classes=classes, n_expected=n_expected, probabilities=softmax(logits),
        **({"groups": [f"g{clip // 4}" for clip in range(120)]} | more),
    )  # fmt: skip
    visualize.confusion_picture(report.confusion, classes, tmp_path / "confusion.png")
    mistakes = confident_mistakes(
        softmax(logits), logits.argmax(axis=1), labels, [f"{name}{clip}.avi" for clip in range(120)], classes=classes
    )
    page = results_page(report, MEASURED, mistakes=mistakes, confusion=tmp_path / "confusion.png", files=tmp_path)
    return page, report


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [4, 101])
def test_a_page_says_what_was_measured_how_right_it_is_and_how_sure_that_is(tmp_path: Path, num_classes: int) -> None:
    page, report = page_of(tmp_path, num_classes=num_classes)
    text = shown(page)
    for said in (
        *("models:/two-stream/3", "s3://bucket/shards", "test1", "paper_2014: 25 samples of a clip", "0a0a0a0a0a0a"),
        *("120 of 121 clips", "bad<1>.avi", "no frame", "1 of the split's 121 clips are in quarantine"),
        *(f"{report.top1:.2%}", f"{report.mean_class:.2%}", "30 groups of clips", "120 clips"),
        *(one.top1.to_text() for one in report.intervals),
        *(pair.sentence() for pair in report.most_confused()),
        *("Definitions", MEASURED.command, "The most confident mistakes"),
    ):
        assert said in text, said
    assert parsed(page).tags.count("img") == 3
    assert len(page) < 1_000_000


@pytest.mark.slow
def test_names_of_classes_and_clips_are_no_markup(tmp_path: Path) -> None:
    plain, _ = page_of(tmp_path)
    hostile, _ = page_of(tmp_path, name="<script>alert('x')</script>\"&")
    assert parsed(hostile).tags == parsed(plain).tags
    assert "<script>alert('x')</script>\"& 3" in shown(hostile)


def test_where_nothing_is_missing_and_nothing_grouped_the_page_has_no_empty_parts(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, n_expected=120, groups=None)
    assert "quarantine:" not in shown(page) and "groups of clips" not in shown(page)


def test_a_model_of_several_data_sets_has_the_metrics_of_each(tmp_path: Path) -> None:
    heads = (Head(name="ucf", start=0, stop=2), Head(name="hmdb", start=2, stop=4))
    page, report = page_of(tmp_path, heads=heads, expected_by_head=(60, 61))
    assert "By data set" in shown(page) and "60 of 61 clips" in shown(page)
    assert [head.name for head in report.heads] == ["ucf", "hmdb"]


def test_the_most_confident_mistakes_come_first_and_right_clips_not_at_all() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = confident_mistakes(
        probabilities, probabilities.argmax(axis=1), np.array([1, 1, 1, 0]), list("abcd"), classes=("x", "y")
    )
    assert [(one.clip_id, one.name, one.taken_for, one.probability) for one in found] == [
        ("a", "y", "x", 0.9),
        ("d", "x", "y", 0.7),
        ("c", "y", "x", 0.6),
    ]
