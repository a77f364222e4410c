from pathlib import Path
from typing import Any

import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.runs.score.prediction_job import JobState, identity_of, open_job


def identity(**settings: Any) -> dict[str, Any]:
    return identity_of(
        model=settings.pop("model", "models:/a@champion"),
        model_sha256=settings.pop("sha256", "0a" * 32),
        classes=["a", "b"],
        head_classes=[],
        flow_contract="123",
        settings={"top_k": 5} | settings,
    )


def opened(out: Path, videos: list[str], *, replace: bool = False, **settings: Any) -> JobState:
    return open_job(str(out), identity(**settings), videos, replace=replace, num_actors=8)


def finish(out: Path, state: JobState, *names: int) -> None:
    for number in names:
        (out / state.parts[number].name).write_bytes(b"rows")


def test_a_job_taken_up_again_has_the_same_parts_less_those_that_are_finished(tmp_path: Path) -> None:
    videos = [f"/{number:04}.mp4" for number in range(200)]
    first = opened(tmp_path, videos)
    assert [len(part.uris) for part in first.parts] == [3] * 66 + [2]
    assert [uri for part in first.parts for uri in part.uris] == videos
    finish(tmp_path, first, 0, 66)
    again = opened(tmp_path, videos, model="the same files by another name")
    assert again.parts == first.parts and again.open_parts == first.parts[1:-1]
    assert (again.num_videos(), again.num_videos(finished=True)) == (200, 5)


def test_a_part_has_at_most_16_videos(tmp_path: Path) -> None:
    state = opened(tmp_path, [f"/{number:05}.mp4" for number in range(5000)])
    assert {len(part.uris) for part in state.parts} == {16, 5000 % 16}


def test_videos_that_come_later_are_added_and_none_is_taken_away(tmp_path: Path) -> None:
    first = opened(tmp_path, ["/b.mp4", "/d.mp4"])
    later = opened(tmp_path, ["/a.mp4", "/d.mp4"])
    assert [part.uris for part in later.parts] == [("/b.mp4",), ("/d.mp4",), ("/a.mp4",)]
    assert later.parts[:2] == first.parts and opened(tmp_path, []).parts == later.parts


def test_predictions_of_another_model_or_setting_are_refused_unless_they_are_to_be_replaced(tmp_path: Path) -> None:
    finish(tmp_path, opened(tmp_path, ["/a.mp4", "/b.mp4"]), 0, 1)
    with pytest.raises(ConfigError, match="has predictions made with top_k = 5, now it is 6: choose another --out, or"):
        opened(tmp_path, ["/a.mp4"], top_k=6)
    with pytest.raises(ConfigError, match="made with the model models:/a@champion = 0a0a"):
        opened(tmp_path, ["/a.mp4"], sha256="0b" * 32)
    assert opened(tmp_path, ["/a.mp4"], replace=True).finished, "what is the same is not done again"
    replaced = opened(tmp_path, ["/a.mp4"], top_k=6, replace=True)
    assert not replaced.finished and [part.uris for part in replaced.parts] == [("/a.mp4",)]
    assert not list(tmp_path.glob("*.parquet"))


def test_files_of_somebody_else_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "part-00000-00000.parquet").write_bytes(b"theirs")
    for replace in (False, True):
        with pytest.raises(ConfigError, match=r"has part-00000-00000\.parquet, which it did not write"):
            opened(tmp_path, ["/a.mp4"], replace=replace)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000-00000.parquet"]


def test_a_damaged_record_is_refused_and_can_be_replaced(tmp_path: Path) -> None:
    opened(tmp_path, ["/a.mp4"])
    (tmp_path / "_job" / "job.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"a batch prediction's record was wanted at .*job\.json, it lacks classes"):
        opened(tmp_path, ["/a.mp4"])
    assert len(opened(tmp_path, ["/b.mp4"], replace=True).parts) == 1
