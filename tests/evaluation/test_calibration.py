import json

import numpy as np
import pytest

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.calibration import fit_temperature, reliability
from twostream_ray.heads import Head, heads_of, softmax

TWO = heads_of(["a", "b"], [])


def test_the_calibration_error_is_what_a_hand_computes() -> None:
    # Bins of 1/15: .95 twice in (.933, 1], .6 once in (.6, .667] or below (it is 9/15 exactly: the bin below), .7 once.
    best = np.array([0.95, 0.95, 0.6, 0.7])
    probabilities, labels = np.stack([best, 1 - best], axis=1), np.array([0, 1, 0, 1])
    found = reliability(probabilities, labels, heads=TWO)
    filled = {index: (one.num_clips, one.accuracy) for index, one in enumerate(found.bins) if one.num_clips}
    assert filled == {8: (1, 1.0), 10: (1, 0.0), 14: (2, 0.5)}
    assert found.ece == pytest.approx((1 * 0.4 + 1 * 0.7 + 2 * 0.45) / 4)
    assert sum(one.num_clips for one in found.bins) == 4 and len(found.bins) == 15
    assert json.loads(json.dumps(found.to_dict()))["bins"][0]["accuracy"] is None


def test_a_network_that_is_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(40_000, 4))
    labels = (softmax(logits).cumsum(axis=1) < random.random((40_000, 1))).sum(axis=1)
    assert reliability(softmax(logits), labels, heads=heads_of(["a"] * 4, [])).ece < 0.01
    assert reliability(softmax(3 * logits), labels, heads=heads_of(["a"] * 4, [])).ece > 0.1


def test_the_fitted_temperature_is_the_one_that_labels_were_drawn_at() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20_000, 5))
    labels = (softmax(logits).cumsum(axis=1) < random.random((20_000, 1))).sum(axis=1)
    heads = heads_of(["a"] * 5, [])
    assert fit_temperature(logits, labels, heads=heads) == pytest.approx(1, abs=0.03)
    assert fit_temperature(7 * logits, labels, heads=heads) == pytest.approx(7, rel=0.03)
    assert fit_temperature(7 * logits + 1000, labels, heads=heads) == pytest.approx(7, rel=0.03)


def test_each_clip_is_judged_by_the_classes_of_its_own_data_set() -> None:
    heads = (Head(name="u", start=0, stop=2), Head(name="h", start=2, stop=4))
    probabilities = np.array([[0.9, 0.1, 1.0, 0.0], [1.0, 0.0, 0.3, 0.7]])
    found = reliability(probabilities, [0, 3], heads=heads)
    assert found.ece == pytest.approx((0.1 + 0.3) / 2)
    logits = np.log([[0.9, 0.1, 0.5, 0.5], [0.5, 0.5, 0.3, 0.7]] * 10)
    assert fit_temperature(logits, [0, 3] * 10, heads=heads) < 0.05  # all are right


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"wanted probabilities from 0 to 1, got -3\.0 to 4\.0"):
        reliability([[4.0, -3.0]], [0], heads=TWO)
