from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from score_tables import write_table

from twostream_ray.errors import TrainingError
from twostream_ray.evaluation import aggregate as module
from twostream_ray.evaluation.aggregate import aggregate, join_towers
from twostream_ray.evaluation.metrics import confusion_matrix, mean_class_accuracy, predicted_classes, top_k_hits
from twostream_ray.heads import Head, heads_of, softmax
from twostream_ray.runs.score.score_table import read_table


def one_head(num_classes: int) -> tuple[Head, ...]:
    return heads_of([""] * num_classes, [])


def logits_of(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(scale=3, size=shape).astype(np.float32)


def test_views_are_averaged_before_towers_and_softmax_is_of_each_view() -> None:
    logits = logits_of(6, 5, 2, 4)
    views = softmax(logits.reshape(-1, 4)).reshape(logits.shape)
    found = aggregate(logits, average="softmax", heads=one_head(4))
    np.testing.assert_allclose(found.probabilities, views.mean(axis=(1, 2)), rtol=1e-14)
    np.testing.assert_allclose(found.logits, np.log(found.probabilities), rtol=1e-14)
    found = aggregate(logits, average="logits", heads=one_head(4))
    np.testing.assert_allclose(found.logits, logits.astype(float).mean(axis=(1, 2)), rtol=1e-13)
    np.testing.assert_allclose(found.probabilities, softmax(found.logits), rtol=1e-14)


def test_the_largest_is_of_the_towers_means_over_views_and_its_probabilities_add_up_to_1() -> None:
    logits = logits_of(6, 5, 2, 4)
    largest = softmax(logits.reshape(-1, 4)).reshape(logits.shape).mean(axis=1).max(axis=1)
    found = aggregate(logits, average="softmax", heads=one_head(4), over_towers="max")
    np.testing.assert_allclose(found.probabilities, largest / largest.sum(axis=1, keepdims=True), rtol=1e-14)
    found = aggregate(logits, average="logits", heads=one_head(4), over_towers="max")
    np.testing.assert_allclose(found.logits, logits.astype(float).mean(axis=1).max(axis=1), rtol=1e-13)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_a_clips_scores_do_not_depend_on_the_clips_beside_it(average: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(17, 3, 2, 4)
    whole = aggregate(logits, average=average, heads=one_head(4))
    monkeypatch.setattr(module, "_PART_BYTES", 5 * 8 * 3 * 2 * 4)  # five clips at a time
    in_parts = aggregate(logits, average=average, heads=one_head(4))
    alone = aggregate(logits[6:7], average=average, heads=one_head(4))
    for ours, parts, lone in zip(whole, in_parts, alone, strict=True):
        np.testing.assert_array_equal(ours, parts)
        np.testing.assert_array_equal(ours[6:7], lone)


def test_only_ratios_of_weights_count_and_a_tower_of_weight_0_leaves_no_trace() -> None:
    logits = logits_of(6, 1, 3, 4)
    both = aggregate(logits, average="logits", heads=one_head(4), tower_weights=(1, 3, 0)).logits
    np.testing.assert_allclose(both, logits[:, 0, 0] * 0.25 + logits[:, 0, 1] * 0.75, rtol=1e-6)
    more = aggregate(logits, average="logits", heads=one_head(4), tower_weights=(2, 6, 0)).logits
    np.testing.assert_array_equal(both, more)
    logits[:, 0, 2] = np.inf
    np.testing.assert_array_equal(
        both, aggregate(logits, average="logits", heads=one_head(4), tower_weights=(1, 3, 0)).logits
    )


def test_the_classes_of_each_data_set_have_probabilities_of_their_own() -> None:
    heads = (Head(name="u", start=0, stop=2), Head(name="h", start=2, stop=5))
    for over in ("mean", "max"):
        found = aggregate(logits_of(6, 2, 2, 5), average="softmax", heads=heads, over_towers=over)
        for head in heads:
            np.testing.assert_allclose(found.probabilities[:, head.columns].sum(axis=1), 1)


def test_a_temperature_divides_the_logits() -> None:
    logits = logits_of(6, 2, 2, 4)
    for average in ("softmax", "logits"):
        cooled = aggregate(logits, average=average, heads=one_head(4), temperature=4.0)
        np.testing.assert_array_equal(
            cooled.probabilities, aggregate(logits / 4, average=average, heads=one_head(4)).probabilities
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 3, 4))}, r"wanted logits \(N, V, S, K\) .* got shape \(2, 3, 4\)"),
        ({"logits": np.zeros((2, 0, 1, 4))}, r"got shape \(2, 0, 1, 4\)"),
        ({"heads": one_head(3)}, "wanted logits of the 3 classes of all data sets, got 4"),
        ({"temperature": 0.0}, "temperature must be more than 0 and finite, got 0.0"),
        ({"tower_weights": (0, 0)}, r"wanted 2 weights of towers, at least 0 and not all of them 0, got \[0.0, 0.0\]"),
        ({"tower_weights": (1, -1)}, r"got \[1.0, -1.0\]"),
        ({"tower_weights": (1,)}, r"wanted 2 weights of towers, .* got \[1.0\]"),
        ({"tower_weights": (1, 2), "over_towers": "max"}, "the largest of the towers' scores takes no weights"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(change: dict[str, Any], message: str) -> None:
    wanted: dict[str, Any] = {"logits": np.zeros((2, 1, 2, 4)), "average": "logits", "heads": one_head(4)} | change
    with pytest.raises(TrainingError, match=message):
        aggregate(wanted.pop("logits"), **wanted)


def test_towers_of_other_clips_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"from every tower, got shapes \[\(2, 3\), \(4, 3\)\]"):
        join_towers([np.zeros((2, 3)), np.zeros((4, 3))])


# -- published scores

AGGREGATIONS: dict[str, dict[str, Any]] = {
    "spatial": {"average": "logits", "tower_weights": (1, 0)},
    "temporal": {"average": "logits", "tower_weights": (0, 1)},
    "sum_logits": {"average": "logits"},
    "sum_softmax_of_raw": {"average": "softmax"},
    "sum_softmax_of_mean19": {"average": "softmax", "temperature": 19.0},
    "max_softmax_mean19": {"average": "softmax", "temperature": 19.0, "over_towers": "max"},
}
"""The aggregations that are named beside the known figures, as ours."""


@pytest.fixture(scope="module")
def views(ucf101: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """The logits of both streams as those of one view, (3783, 1, 2, 101), written to a score table and read."""
    folder, logits = tmp_path_factory.mktemp("ucf101"), np.stack([ucf101["spatial"], ucf101["temporal"]], axis=1)
    names, groups = ucf101["names"].tolist(), [str(name).rpartition("_c")[0] for name in ucf101["names"]]
    write_table(folder, logits[:, None], labels=ucf101["label"].tolist(), clip_ids=names, groups=groups)
    table = read_table(str(folder))
    assert table.clip_ids.tolist() == names and table.labels.tolist() == ucf101["label"].tolist()
    assert table.groups is not None and len(set(table.groups.tolist())) == 707
    np.testing.assert_array_equal(table.logits[:, 0], logits)
    return table.logits


@pytest.mark.real
@pytest.mark.parametrize("named", AGGREGATIONS)
def test_each_aggregation_of_published_scores_gives_its_known_figures(
    named: str, views: NDArray[np.float32], ucf101: dict[str, NDArray[Any]], expected: dict[str, Any]
) -> None:
    scores, labels = aggregate(views, heads=one_head(101), **AGGREGATIONS[named]).probabilities, ucf101["label"]
    if named != "sum_softmax_of_raw":  # sums over 19 frames are near one-hot: probabilities of 0 tie, logits do not
        scores = aggregate(views, heads=one_head(101), **AGGREGATIONS[named]).logits
    figures: Mapping[str, Any] = expected["minli"][named]
    assert top_k_hits(scores, labels, k=1).sum() == figures["top1"]
    assert top_k_hits(scores, labels, k=5).sum() == figures["top5"]
    confusion = confusion_matrix(labels, predicted_classes(scores), num_classes=101)
    assert mean_class_accuracy(confusion) == pytest.approx(figures["mean_class"], abs=1e-12)


@pytest.mark.real
def test_every_aggregation_that_has_known_figures_is_named(expected: dict[str, Any]) -> None:
    others = {"n", "sweep_temporal_weight_sum_logits", "sweep_temporal_weight_softmax_mean19"}
    assert AGGREGATIONS.keys() == expected["minli"].keys() - others - {"fine_sweep_best_0.005_grid"}


@pytest.mark.real
@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("sum_logits", {"average": "logits"}),
        ("softmax_mean19", {"average": "softmax", "temperature": 19.0}),
    ],
)
def test_every_weight_of_the_towers_gives_the_known_number_of_hits(
    key: str, how: dict[str, Any], views: NDArray[np.float32], ucf101: dict[str, NDArray[Any]], expected: dict[str, Any]
) -> None:
    for weight, num_correct in expected["minli"][f"sweep_temporal_weight_{key}"].items():
        temporal = float(weight)
        found = aggregate(views, heads=one_head(101), tower_weights=(1 - temporal, temporal), **how)
        assert top_k_hits(found.logits, ucf101["label"], k=1).sum() == num_correct, weight


@pytest.mark.real
def test_the_best_weight_of_a_fine_sweep_is_the_known_one(
    views: NDArray[np.float32], ucf101: dict[str, NDArray[Any]], expected: dict[str, Any]
) -> None:
    known = expected["minli"]["fine_sweep_best_0.005_grid"]
    weights = np.linspace(0, 1, 201)
    hits = [
        top_k_hits(join_towers([*views[:, 0].swapaxes(0, 1)], weights=(1 - weight, weight)), ucf101["label"], k=1).sum()
        for weight in weights
    ]
    assert max(hits) == known["best"]
    assert weights[np.flatnonzero(hits == max(hits))].round(3).tolist() == known["weights"]
    (best,) = known["weights"]
    found = aggregate(views, average="logits", heads=one_head(101), tower_weights=(1 - best, best))
    assert top_k_hits(found.logits, ucf101["label"], k=1).sum() == known["best"]


@pytest.mark.real
def test_the_ratios_of_mmaction2s_example_give_its_numbers(real: Path, expected: dict[str, Any]) -> None:
    with np.load(real / "scores" / "mmaction2_fuse_joint_bone.npz") as arrays:
        views, labels = np.stack([arrays["joint"], arrays["bone"]], axis=1)[:, None], arrays["label"]
    for ratio, figures in expected["mmaction2"].items():
        weights = tuple(map(float, ratio.split(":")))
        found = aggregate(views, average="logits", heads=one_head(views.shape[-1]), tower_weights=weights)
        for k in (1, 5):
            assert top_k_hits(found.logits, labels, k=k).mean() == pytest.approx(figures[f"top{k}"], abs=1e-12), ratio


@pytest.mark.real
def test_i3ds_joint_logits_are_the_sum_of_its_streams_row_by_row(real: Path) -> None:
    rgb, flow, joint = (
        published_rows(real / "scores" / f"i3d_imagenet_{name}.txt") for name in ("rgb", "flow", "joint")
    )
    common = sorted(rgb.keys() & flow.keys() & joint.keys())
    assert len(common) == 9 and {"playing cricket", "hurling (sport)"} <= set(common)
    views = np.array([[rgb[name] for name in common], [flow[name] for name in common]])[None, None]
    summed = 2 * aggregate(views, average="logits", heads=one_head(len(common))).logits[0]
    np.testing.assert_allclose(summed, [joint[name] for name in common], atol=2e-5)


def published_rows(path: Path) -> dict[str, float]:
    """Logits of the 20 best classes of one clip, as the authors print them."""
    rows = [line.split(" ", 2) for line in path.read_text().splitlines()[3:]]
    return {name: float(logit) for _, logit, name in rows}
