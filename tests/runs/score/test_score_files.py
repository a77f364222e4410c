from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from two_score_files import refused, write_scores

from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.runs.score.settings import StreamScoresConfig, TuneScoresConfig
from twostream_ray.runs.score.tune_scores import tune_scores


def test_other_clips_other_labels_and_doubled_clips_are_refused(streams: dict[str, Any], tmp_path: Path) -> None:
    spatial, labels, ids = streams["files"]["spatial"], streams["labels"], streams["ids"]
    fewer = write_scores(tmp_path / "fewer.npz", streams["temporal"][5:], labels[5:], ids[5:])
    said = refused(ConfigError, spatial=spatial, temporal=fewer)
    assert "of 60 and 55 there are 5 only in" in said and "(class0/v_00_c0.avi)" in said
    assert "evaluate both models on the same split" in said
    relabelled = write_scores(tmp_path / "labels.npz", streams["temporal"], (labels + 1) % 3, ids)
    assert "class0/v_00_c0.avi and 59 more clips have different labels" in refused(
        ConfigError, spatial=spatial, temporal=relabelled
    )
    doubled = write_scores(tmp_path / "doubled.npz", streams["temporal"], labels, [*ids[:59], ids[0]])
    assert "60 rows of 59 clips" in refused(ConfigError, spatial=spatial, temporal=doubled)
    narrow = write_scores(tmp_path / "narrow.npz", streams["temporal"][:, :2], labels, ids)
    assert "got spatial (60, 3), temporal (60, 2)" in refused(ConfigError, spatial=spatial, temporal=narrow)


def test_scores_of_other_classes_or_of_another_order_of_them_are_refused(
    streams: dict[str, Any], tmp_path: Path
) -> None:
    labels, ids = streams["labels"], streams["ids"]

    def files(part: str, spatial: list[str] | None, temporal: list[str] | None) -> dict[str, str]:
        keep = np.arange(60) % 2 == (part == "quote")
        rows = [clip for clip, kept in zip(ids, keep, strict=True) if kept]
        return {
            stream: write_scores(
                tmp_path / f"{part} {stream}.npz",
                streams[stream][keep],
                labels[keep],
                rows,
                **({} if classes is None else {"classes": np.asarray(classes)}),
            )
            for stream, classes in (("spatial", spatial), ("temporal", temporal))
        }

    ours = ["run", "sit", "walk"]
    for others in (["run", "walk", "sit"], ["run", "swim", "walk"]):
        said = refused(ConfigError, **files("choose", ours, others))
        assert f"the same classes in the same order, but label 1 is 'sit' in the one and {others[1]!r}" in said
        quote = StreamScoresConfig(**files("quote", others, None))
        choose = StreamScoresConfig(**files("choose", None, ours))
        with pytest.raises(
            ConfigError, match="choose and quote must hold scores of the same classes in the same order"
        ):
            tune_scores(TuneScoresConfig(choose=choose, quote=quote, out=str(tmp_path)))
    assert "must hold the names of its 3 classes, got <U3 (2,)" in refused(
        ConfigError, **files("choose", ours, ours[:2])
    )
    named = StreamScoresConfig(**files("choose", ours, ours))
    assert tune_scores(TuneScoresConfig(choose=named, out=str(tmp_path / "named"))).notes == ()
    nameless = StreamScoresConfig(**files("choose", ours, None))
    (note,) = tune_scores(TuneScoresConfig(choose=nameless, out=str(tmp_path / "nameless"))).notes
    assert "choose temporal.npz has no names of classes, as it is of an earlier version" in note


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        (np.array([0, 3]), np.zeros((2, 3)), "must hold labels from 0 to 2, got 0 to 3"),
        (np.array([-1, 0]), np.zeros((2, 3)), "must hold labels from 0 to 2, got -1 to 0"),
        (np.array(["a", "b"]), np.zeros((2, 3)), "must hold numbers as labels, got <U1"),
        (np.array([0, 1]), np.full((2, 3), "x"), "must hold numbers as scores, got <U1"),
    ],
)
def test_values_that_cannot_be_scores_are_refused(
    tmp_path: Path, labels: NDArray[Any], scores: NDArray[Any], said: str
) -> None:
    np.savez(tmp_path / "odd.npz", spatial=scores, temporal=scores, labels=labels)
    assert said in refused(ConfigError, both=str(tmp_path / "odd.npz"))


def test_a_file_that_holds_something_else_is_refused_without_unpickling(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip")
    assert "cannot be read" in refused(StorageError, both=str(tmp_path / "text.npz"))
    np.savez(tmp_path / "pickled.npz", spatial=np.array([{}], dtype=object))
    assert "cannot be read" in refused(StorageError, both=str(tmp_path / "pickled.npz"))
    np.savez(tmp_path / "other.npz", joint=np.zeros((2, 2)))
    said = refused(ConfigError, both=str(tmp_path / "other.npz"))
    assert "it lacks spatial, temporal, labels and has joint" in said
    assert "it does not exist" in refused(StorageError, both=str(tmp_path / "missing.npz"))


def test_clips_to_quote_on_that_were_chosen_on_are_refused(streams: dict[str, Any], tmp_path: Path) -> None:
    files = StreamScoresConfig(**streams["files"])
    with pytest.raises(ConfigError, match="must not share clips, 60 of the 60 of quote are in both"):
        tune_scores(TuneScoresConfig(choose=files, quote=files, out=str(tmp_path)))
