import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_pages import parsed, shown
from numpy.typing import NDArray
from score_tables import PROTOCOL, write_table

from twostream_ray import cli
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.evaluation.metrics import top_k_hits
from twostream_ray.runs.score.clip_scores import find_table, read_clip_scores
from twostream_ray.runs.score.compare import compare
from twostream_ray.runs.score.settings import CompareConfig


def logits_of(num_clips: int, *, num_right: int, seed: int = 0, num_classes: int = 3) -> NDArray[np.float32]:
    """Logits (n, 2, 2, K) of clips of the classes 0, 1, 2, 0, 1, ..., of which the first `num_right` are right."""
    labels = np.arange(num_clips) % num_classes
    best = np.where(np.arange(num_clips) < num_right, labels, (labels + 1) % num_classes)
    noise = np.random.default_rng(seed).random((num_clips, 2, 2, num_classes)) / 4
    return (noise + 3 * np.eye(num_classes)[best][:, None, None]).astype(np.float32)


def two_evaluations(folder: Path, **of_second: Any) -> CompareConfig:
    """Forty clips in ten groups; the first model gets 20 right, the second 30."""
    groups = [f"g{clip // 4}" for clip in range(40)]
    write_table(folder / "a", logits_of(40, num_right=20), groups=groups)
    write_table(
        folder / "b", logits_of(40, num_right=30, seed=1), groups=groups, **({"model_sha256": "0f" * 32} | of_second)
    )
    return CompareConfig(first=str(folder / "a"), second=str(folder / "b"), out=str(folder / "out"))


def test_a_comparison_counts_discordant_clips_and_says_how_sure_it_is(tmp_path: Path) -> None:
    found = compare(two_evaluations(tmp_path))
    paired = found.paired
    assert (paired.both_right, paired.only_first, paired.only_second, paired.both_wrong) == (20, 0, 10, 10)
    assert paired.mcnemar_p == pytest.approx(2 / 2**10)
    assert paired.over_groups is not None and paired.over_groups.num_units == 10
    first, second, third, blank, said, counts, *moved = found.to_text().splitlines()
    assert (first[:17], second[:17], third, blank) == (
        "A  top-1 50.00%  ",
        "B  top-1 75.00%  ",
        "40 of 40 clips of split test",
        "",
    )
    over_clips, over_groups = (
        f"[{100 * low:+.1f}, {100 * high:+.1f}]" for low, high in (paired.over_clips.top1, paired.over_groups.top1)
    )
    assert said == (
        f"B - A: +25.00 points of top-1, 95% interval {over_clips} over clips and {over_groups} over 10 groups, which "
        "are few; McNemar's exact p 0.002, of 10 discordant clips"
    )
    assert counts == "both right 20, only A 0, only B 10, neither 10"
    assert re.fullmatch(r"B is better on: class 2 \+30\.8% \(\+4 of 13\), .*", moved[0])


def test_what_is_written_has_every_discordant_clip_and_a_page(tmp_path: Path) -> None:
    compare(two_evaluations(tmp_path))
    stored = json.loads((tmp_path / "out/compare.json").read_text())
    assert (stored["num_clips"], stored["num_expected"], stored["only_second"]) == (40, 40, 10)
    assert [one["over"] for one in stored["intervals"]] == ["clips", "groups"]
    assert len(stored["discordant"]) == 10 and all(one["second_is_right"] for one in stored["discordant"])
    gains = [abs(one["gain"]) for one in stored["discordant"]]
    assert gains == sorted(gains, reverse=True)
    text = shown((tmp_path / "out/compare.html").read_bytes())
    for said in ("40 of 40 clips", "+25.00", "B is better than A", "10 are few", "10 groups of clips", "class 2"):
        assert said in text, said
    assert "img" not in parsed((tmp_path / "out/compare.html").read_bytes()).tags
    compare(two_evaluations(tmp_path))  # its own files are written over


def test_hits_are_those_of_the_report_whatever_is_averaged(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=4, size=(40, 3, 2, 5)).astype(np.float32)
    for average in ("softmax", "logits"):
        write_table(tmp_path / average, logits, protocol=PROTOCOL | {"average": average})
        scores = read_clip_scores(str(tmp_path / average))
        right = scores.predicted() == scores.labels
        assert right.tolist() == top_k_hits(scores.ranked_by(), scores.labels, k=1).tolist()
    found = compare(
        CompareConfig(first=str(tmp_path / "softmax"), second=str(tmp_path / "logits"), out=str(tmp_path / "out"))
    )
    assert "the protocols differ, which may cause part of the difference" in found.to_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, r"split test of manifest 0a0a0a0a0a0a in .*/a/scores and split val of manifest 0a0a"),
        ({"manifest_hash": "0c" * 32}, "split test of manifest 0c0c0c0c0c0c .* evaluate both models on the same split"),
        (
            {"clip_ids": [f"other{clip}" for clip in range(40)]},
            "different clips, labels or classes: one of them is damaged",
        ),
        ({"labels": [0] * 40}, "different clips, labels or classes"),
    ],
)
def test_evaluations_of_other_clips_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(two_evaluations(tmp_path, **change))
    assert not (tmp_path / "out").exists()


def test_clips_of_several_data_sets_are_judged_by_the_classes_of_their_own(tmp_path: Path) -> None:
    logits = np.zeros((4, 1, 1, 4), np.float32)
    logits[:, 0, 0] = [[1, 0, 9, 9], [1, 0, 9, 9], [9, 9, 1, 0], [9, 9, 0, 1]]
    write_table(tmp_path / "a", logits, labels=[0, 1, 2, 3], head_classes=(2, 2))
    found = read_clip_scores(str(tmp_path / "a"))
    assert found.predicted().tolist() == [0, 0, 2, 3]
    np.testing.assert_allclose(found.scores.probabilities.sum(axis=1), 2)


def test_as_many_clips_are_shown_that_each_gets_right(tmp_path: Path) -> None:
    first, second = logits_of(40, num_right=20), logits_of(40, num_right=40, seed=1)
    second[:4] = np.roll(second[:4], 1, axis=-1)  # four that only the first gets right
    write_table(tmp_path / "a", first)
    write_table(tmp_path / "b", second, model_sha256="0f" * 32)
    found = compare(CompareConfig(first=str(tmp_path / "a"), second=str(tmp_path / "b"), out=str(tmp_path / "out")))
    sides = {num: [clip.second_is_right for clip in found.shown(num)] for num in (0, 1, 6, 12, 100)}
    assert {num: (len(one), sum(one)) for num, one in sides.items()} == {
        0: (0, 0), 1: (1, 0), 6: (6, 3), 12: (12, 8), 100: (24, 20)
    }  # fmt: skip


def test_an_evaluation_is_found_by_its_folder_its_run_or_the_runs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "runs/first/evaluation", logits_of(16, num_right=8))
    for name in ("runs/first/evaluation", "runs/first/evaluation/scores", "runs/first", "first"):
        assert len(read_clip_scores(find_table(name)).labels) == 16
    with pytest.raises(StorageError, match="a score table was wanted at second"):
        read_clip_scores(find_table("second"))


def test_clips_that_differ_are_shown_by_their_middle_frame(
    shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    members = shard_set.split("test")
    ids, labels = shard_set.index["clip_id"].to_pylist(), shard_set.labels[members]
    num_classes = len(shard_set.classes)
    right = 3 * np.eye(num_classes, dtype=np.float32)[labels][:, None, None]
    same: dict[str, Any] = {
        "labels": labels.tolist(),
        "clip_ids": [ids[clip] for clip in members],
        "classes": shard_set.classes,
        "manifest_hash": shard_set.hash,
    }
    write_table(tmp_path / "a", np.roll(right, 1, axis=-1), **same)
    write_table(tmp_path / "b", right, model_sha256="0f" * 32, **same)
    arguments = [
        "compare",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--out",
        str(tmp_path / "out"),
        "--num_clips",
        "3",
    ]
    assert cli.main([*arguments, "--shards", shard_set.uri]) == 0
    assert "compare.html and compare.json are in" in capsys.readouterr().out
    page = parsed((tmp_path / "out/compare.html").read_bytes())
    assert page.tags.count("img") == 3
    assert cli.main([*arguments, "--shards", str(tmp_path / "none")]) == 2
    assert cli.main(arguments) == 0  # where A was evaluated there are no shards now
    assert "the page shows no pictures of clips: no shards at" in caplog.text
