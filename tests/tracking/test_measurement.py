import json
from typing import Any

import pytest

from twostream_ray.errors import RegistryError
from twostream_ray.tracking.measurement import Measurement, measurement_from, measurement_key

MANIFEST = "0a" * 32


def measured(**changed: Any) -> Measurement:
    values = {"manifest_hash": MANIFEST, "split": "test", "num_evaluated": 298, "num_clips": 300}
    return Measurement(**({**values, "metrics": {"top1": 0.5}} | changed))


def test_a_measurement_is_read_from_its_tags_on_its_own_split_and_manifest_alone() -> None:
    tags = measured().tags()
    assert tags["test.top1"] == "0.5000 (298 of 300 clips, manifest 0a0a0a0a0a0a)"
    assert measurement_from(tags, manifest_hash=MANIFEST, split="test") == measured()
    assert measurement_from(tags, manifest_hash=MANIFEST, split="val") is None
    assert measurement_from(tags, manifest_hash="1b" * 32, split="test") is None


def test_a_measurement_says_where_its_scores_are_and_one_of_earlier_versions_does_not() -> None:
    whole = measured(scores="s3://bucket/evaluation", score_table="0c" * 32)
    assert measurement_from(whole.tags(), manifest_hash=MANIFEST, split="test") == whole
    assert "scores" not in measured().tags()[measurement_key(MANIFEST, "test")]
    assert measured(scores="s" * 3000).tags() == measured().tags()  # a tag has an end


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(RegistryError, match=r"top1 of split test must be finite, got (nan|inf): do not register this"):
        measured(metrics={"top1": value})


@pytest.mark.parametrize("num_evaluated", [0, 301])
def test_more_clips_than_there_are_or_none_is_refused(num_evaluated: int) -> None:
    with pytest.raises(RegistryError, match=r"a measurement needs 1 to all of its 300 clips, got \d+: evaluate split"):
        measured(num_evaluated=num_evaluated)


@pytest.mark.parametrize(
    "changed",
    [
        *({"metrics": value} for value in ({"top1": "high"}, {"top1": None}, {"top1": True}, ["top1"], "top1")),
        {"metrics": {"top1": 1e999}},
        {"num_evaluated": 301},
        {"split": "val"},
    ],
)
def test_a_tag_that_is_no_measurement_counts_as_none(changed: dict[str, Any]) -> None:
    stored = {"manifest_hash": MANIFEST, "split": "test", "num_evaluated": 3, "num_clips": 3, "metrics": {"top1": 1.0}}
    tags = {measurement_key(MANIFEST, "test"): json.dumps(stored | changed)}
    assert measurement_from(tags, manifest_hash=MANIFEST, split="test") is None
    assert measurement_from({next(iter(tags)): json.dumps(stored)}, manifest_hash=MANIFEST, split="test") is not None
