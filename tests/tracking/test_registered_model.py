import json
import time

from twostream_ray.tracking.measurement import Measurement
from twostream_ray.tracking.registered_model import (
    CANDIDATE_TAG,
    CHAMPION_SINCE_TAG,
    ROLLED_BACK_TAG,
    Criterion,
    RegisteredModel,
)

MANIFEST = "0a" * 32
CRITERION = Criterion(manifest_hash=MANIFEST, split="test", metric="top1")


def tags(*, declared: float) -> dict[str, str]:
    terms = {"manifest_hash": MANIFEST, "split": "test", "metric": "top1"}
    measured = Measurement(manifest_hash=MANIFEST, split="test", num_evaluated=3, num_clips=3, metrics={"top1": 0.5})
    return measured.tags() | {CANDIDATE_TAG: json.dumps({"declared": declared, "terms": terms})}


def test_candidates_are_those_declared_since_and_neither_taken_back_nor_from_the_future() -> None:
    now = time.time()
    model = RegisteredModel(
        tags={
            1: tags(declared=now - 700),
            2: tags(declared=now - 10),
            3: tags(declared=now - 10) | {ROLLED_BACK_TAG: "by a user"},
            4: tags(declared=now + 5000),
            5: {},
        },
        champion=None,
    )
    assert [candidate.version for candidate in model.candidates(since=now - 600, now=now)] == [2]
    assert model.measurement(5, CRITERION) is None


def test_the_champion_before_is_the_last_that_was_not_taken_back() -> None:
    since = "2026-01-0{}T00:00:00.000+00:00"
    model = RegisteredModel(
        tags={
            1: {CHAMPION_SINCE_TAG: since.format(1)},
            2: {CHAMPION_SINCE_TAG: since.format(2), ROLLED_BACK_TAG: "by a user"},
            3: {CHAMPION_SINCE_TAG: since.format(3)},
        },
        champion=3,
    )
    assert model.champion_before() == 1
