import numpy as np
import pytest

from twostream_ray.evaluation.metrics import (
    confusion_matrix,
    mean_class_accuracy,
    own_head_first,
    predicted_classes,
    top_k_accuracy,
    top_k_hits,
)


def test_top_k_counts_the_classes_ahead_of_the_true_one() -> None:
    scores = [[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.1, 0.6, 0.3]]
    assert top_k_hits(scores, [1, 2, 0], k=1).tolist() == [True, False, False]
    assert top_k_hits(scores, [1, 2, 0], k=2).tolist() == [True, True, False]
    assert top_k_accuracy(scores, [1, 2, 0], k=2) == pytest.approx(2 / 3)
    assert top_k_accuracy(scores, [1, 2, 0], k=3) == 1


def test_equal_scores_are_ordered_by_class_index_in_top_1_and_in_the_prediction_alike() -> None:
    scores = np.ones((4, 4))
    assert predicted_classes(scores).tolist() == [0, 0, 0, 0]
    assert top_k_hits(scores, [0, 1, 2, 3], k=1).tolist() == [True, False, False, False]
    assert top_k_hits(scores, [0, 1, 2, 3], k=3).tolist() == [True, True, True, False]


def test_top_1_is_the_diagonal_of_the_confusion_matrix() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 3, (200, 7)), random.integers(0, 7, 200)  # small integers: many ties
    confusion = confusion_matrix(labels, predicted_classes(scores), num_classes=7)
    assert confusion.sum() == 200
    assert confusion.trace() == top_k_hits(scores, labels, k=1).sum()
    assert confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=7).tolist()


def test_mean_class_accuracy_weighs_classes_alike_and_leaves_out_those_without_a_clip() -> None:
    confusion = confusion_matrix([0, 0, 0, 0, 1], [0, 0, 0, 2, 1], num_classes=4)
    assert mean_class_accuracy(confusion) == pytest.approx((3 / 4 + 1) / 2)


def test_classes_of_another_data_set_rank_behind_all_of_the_clips_own() -> None:
    scores = [[0.2, 0.1, 7.0, 9.0, 8.0], [6.0, 5.0, -1.0, -3.0, -2.0]]
    ranked = own_head_first(scores, [1, 4], head_classes=(2, 3))
    assert np.argsort(-ranked, kind="stable").tolist() == [[0, 1, 2, 3, 4], [2, 4, 3, 0, 1]]
    np.testing.assert_array_equal(own_head_first(scores, [1, 4], head_classes=(5,)), scores)
