from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation.late_fusion import late_fusion, late_fusion_hits, svm_fusion
from twostream_ray.evaluation.metrics import (
    confusion_matrix,
    mean_class_accuracy,
    predicted_classes,
    top_k_accuracy,
    top_k_hits,
)
from twostream_ray.evaluation.report import report_on
from twostream_ray.heads import softmax


def test_late_fusion_at_the_ends_is_one_stream_alone() -> None:
    spatial, temporal = np.random.default_rng(0).normal(size=(2, 6, 4))
    np.testing.assert_array_equal(late_fusion(spatial, temporal, temporal_weight=0.0, of="logits"), spatial)
    np.testing.assert_array_equal(late_fusion(spatial, temporal, temporal_weight=1.0), softmax(temporal))


def test_late_fusion_of_different_clips_or_an_impossible_weight_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"got spatial \(2, 3\) and temporal \(4, 3\)"):
        late_fusion(np.zeros((2, 3)), np.zeros((4, 3)))
    with pytest.raises(TrainingError, match=r"temporal_weight must be from 0 to 1, got 1\.5"):
        late_fusion(np.zeros((2, 3)), np.zeros((2, 3)), temporal_weight=1.5)


def blind_streams(labels: NDArray[Any], *, seed: int) -> list[NDArray[Any]]:
    """The spatial stream separates {0, 1} from {2, 3}, the temporal one {0, 2} from {1, 3}; each guesses the rest."""
    noise = np.random.default_rng(seed).normal(scale=0.5, size=(2, len(labels), 4))
    halves = np.array([[[0, 1], [2, 3]], [[0, 2], [1, 3]]])
    sides = (labels // 2, labels % 2)
    for stream in range(2):
        for clip, side in enumerate(sides[stream]):
            noise[stream, clip, halves[stream, side]] += 3
    return list(noise)


@pytest.mark.slow
def test_an_svm_joins_two_streams_that_are_half_blind_each() -> None:
    fit_labels, labels = np.arange(80) % 4, np.arange(60) % 4
    judged = blind_streams(labels, seed=1)
    values = svm_fusion(judged, fit_scores=blind_streams(fit_labels, seed=0), fit_labels=fit_labels)
    assert top_k_accuracy(values, labels, k=1) == 1
    assert max(top_k_accuracy(scores, labels, k=1) for scores in judged) < 0.7


def test_an_svm_learns_that_a_stream_confuses_two_classes_and_averaging_does_not() -> None:
    fit_labels, labels = np.arange(60) % 3, np.arange(30) % 3
    swapped = np.array([1, 0, 2])
    spatial, temporal = 2 * np.eye(3), 4 * np.eye(3)[swapped]
    values = svm_fusion(
        [spatial[labels], temporal[labels]],
        fit_scores=[spatial[fit_labels], temporal[fit_labels]],
        fit_labels=fit_labels,
    )
    assert predicted_classes(values).tolist() == labels.tolist()
    averaged = late_fusion(spatial[labels], temporal[labels])
    assert top_k_accuracy(averaged, labels, k=1) == pytest.approx(1 / 3)


def test_an_svm_of_two_classes_has_a_value_for_each() -> None:
    labels = np.arange(20) % 2
    scores = np.eye(2)[labels]
    values = svm_fusion([scores, scores], fit_scores=[scores, scores], fit_labels=labels)
    assert values.shape == (20, 2)
    assert predicted_classes(values).tolist() == labels.tolist()


def test_an_svm_refuses_what_it_cannot_learn_from() -> None:
    scores, labels = np.eye(3), np.arange(3)
    with pytest.raises(TrainingError, match=r"clips of all 3 classes to learn from, got none of 1, class 2 first"):
        svm_fusion([scores], fit_scores=[scores], fit_labels=[0, 1, 1])
    with pytest.raises(TrainingError, match=r"from every stream, got shapes \[\(3, 3\), \(2, 3\)\]"):
        svm_fusion([scores, scores], fit_scores=[scores, scores[:2]], fit_labels=labels)
    with pytest.raises(TrainingError, match="got 6 columns to learn from and 3 to judge"):
        svm_fusion([scores], fit_scores=[scores, scores], fit_labels=labels)
    with pytest.raises(TrainingError, match="penalty must be more than 0, got 0"):
        svm_fusion([scores], fit_scores=[scores], fit_labels=labels, penalty=0)


@pytest.mark.real
@pytest.mark.parametrize(
    ("scored", "temporal_weight", "num_correct"),
    [("spatial", 0.0, 3074), ("temporal", 1.0, 3014), ("sum_logits", 0.5, 3332)],
)
def test_published_two_stream_scores_of_ucf101_give_the_published_accuracy(
    ucf101: dict[str, NDArray[Any]], expected: dict[str, Any], scored: str, temporal_weight: float, num_correct: int
) -> None:
    scores = late_fusion(ucf101["spatial"], ucf101["temporal"], temporal_weight=temporal_weight, of="logits")
    report = report_on(scores, ucf101["label"], classes=tuple(map(str, range(101))), n_expected=3783)
    assert report.top5 is not None
    assert round(report.top1 * 3783) == num_correct == expected["minli"][scored]["top1"]
    assert round(report.top5 * 3783) == expected["minli"][scored]["top5"]
    assert report.mean_class == pytest.approx(expected["minli"][scored]["mean_class"], abs=1e-12)
    assert report.coverage == "3783 of 3783 clips"


@pytest.mark.real
def test_every_weight_of_late_fusion_gives_the_known_number_of_hits(
    ucf101: dict[str, NDArray[Any]], expected: dict[str, Any]
) -> None:
    spatial, temporal, labels = ucf101["spatial"] / 19, ucf101["temporal"] / 19, ucf101["label"]
    for of, key in (("logits", "sum_logits"), ("softmax", "softmax_mean19")):
        for weight, num_correct in expected["minli"][f"sweep_temporal_weight_{key}"].items():
            fused = late_fusion(spatial, temporal, temporal_weight=float(weight), of=of)
            assert top_k_hits(fused, labels, k=1).sum() == num_correct, (of, weight)


@pytest.mark.real
def test_mmaction2s_example_of_score_fusion_gives_its_numbers(real: Path, expected: dict[str, Any]) -> None:
    with np.load(real / "scores" / "mmaction2_fuse_joint_bone.npz") as arrays:
        joint, bone, labels = arrays["joint"], arrays["bone"], arrays["label"]
    for ratio, figures in expected["mmaction2"].items():
        first, second = map(int, ratio.split(":"))
        fused = late_fusion(joint, bone, temporal_weight=second / (first + second), of="logits")
        assert top_k_accuracy(fused, labels, k=1) == pytest.approx(figures["top1"], abs=1e-12), ratio
        assert top_k_accuracy(fused, labels, k=5) == pytest.approx(figures["top5"], abs=1e-12), ratio
    # MMAction2 documents 0.9180 for 1:1: it averages over classes in labels or predictions, we over those in labels.
    fused = late_fusion(joint, bone, of="logits")
    confusion = confusion_matrix(labels, predicted_classes(fused), num_classes=120)
    assert mean_class_accuracy(confusion) == pytest.approx(56 / 60, abs=1e-12)
    judged = (confusion.sum(axis=1) + confusion.sum(axis=0)) > 0
    assert confusion.trace() / judged.sum() == pytest.approx(0.9180, abs=1e-4)


@pytest.mark.slow
@pytest.mark.real
def test_an_svm_on_half_of_ucf101s_real_scores_beats_both_streams_and_their_mean_on_the_other(
    ucf101: dict[str, NDArray[Any]],
) -> None:
    # The scores are sums over 19 frames; the softmax of sums would be nearly one-hot.
    streams = [ucf101["spatial"] / 19, ucf101["temporal"] / 19]
    labels = ucf101["label"].astype(np.int64)
    values = svm_fusion(
        [scores[1::2] for scores in streams],
        fit_scores=[scores[0::2] for scores in streams],
        fit_labels=labels[0::2],
    )
    judged = labels[1::2]
    alone = [top_k_accuracy(scores[1::2], judged, k=1) for scores in streams]
    averaged = top_k_accuracy(late_fusion(*(scores[1::2] for scores in streams)), judged, k=1)
    # Both halves hold clips of the same scenes, so this is no accuracy to quote.
    assert top_k_accuracy(values, judged, k=1) > averaged + 0.1 > max(alone) + 0.1


@pytest.mark.parametrize("kind", ["any", "ties"])
def test_a_sweep_of_weights_counts_what_fusion_and_hits_count_one_by_one(kind: str) -> None:
    rng = np.random.default_rng(1)
    spatial, temporal = (rng.normal(size=(200, 7)) for _ in range(2))
    if kind == "ties":
        spatial, temporal = np.round(spatial), np.round(temporal)
    labels, weights = rng.integers(7, size=200), np.linspace(0, 1, 41)
    one_by_one = [
        top_k_hits(late_fusion(spatial, temporal, temporal_weight=weight, of="logits"), labels, k=1).sum()
        for weight in weights
    ]
    assert late_fusion_hits(spatial, temporal, labels, temporal_weights=weights).tolist() == one_by_one
    with pytest.raises(TrainingError, match="temporal_weight must be from 0 to 1"):
        late_fusion_hits(spatial, temporal, labels, temporal_weights=[0.5, 1.5])
    with pytest.raises(TrainingError, match="same clips and classes from both streams"):
        late_fusion_hits(spatial, temporal[:, :5], labels, temporal_weights=weights)
    spatial[3, 0] = np.nan
    with pytest.raises(TrainingError, match="wanted finite scores"):
        late_fusion_hits(spatial, temporal, labels, temporal_weights=weights)
