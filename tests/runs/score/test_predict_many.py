import json
from pathlib import Path

import pandas as pd
import pytest
from test_inference import stored_model

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.inference import Classifier
from twostream_ray.runs.score.predict_many import predict_many
from twostream_ray.runs.score.settings import PredictConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_model(tmp_path_factory.mktemp("model"))


def test_a_folder_becomes_a_row_for_each_video_with_the_scores_of_predict(
    cluster: None, videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    out = tmp_path / "predictions"
    command = ["predict", str(videos / "val"), str(bad), str(tmp_path / "nowhere.mp4")]
    command += ["--num_actors", "1", "--model", str(model), "--out", str(out), "--top_k", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"10 videos in {out}; 10 done now in " in printed and "): 1 missing, 8 ok, 1 undecodable" in printed
    frame = pd.read_parquet(out).set_index("uri")
    assert len(frame) == 10 and frame.index.is_unique
    assert frame.status[str(bad)] == "undecodable" and "not a readable video, 8 bytes" in frame.error[str(bad)]
    assert frame.status[str(tmp_path / "nowhere.mp4")] == "missing"
    classifier = Classifier.load(model)
    for prediction in classifier.predict([uri for uri in frame.index if "/val/" in uri], top_k=1):
        row = frame.loc[prediction.video]
        assert row.logits.tolist() == pytest.approx([x for head in prediction.heads for x in head.logits], abs=1e-6)
        assert [one["class"] for one in row.top] == [head.top[0][0] for head in prediction.heads]
        assert (row.start_seconds, row.end_seconds, row.frames) == (0.0, 16 / 25, 16)

    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[0] == "10 of 10 videos are done already"
    assert main([*command[:-1], "2"]) == 2
    assert "has predictions made with top_k = 1, now it is 2" in capsys.readouterr().err


def test_videos_that_come_later_are_added_and_finished_parts_are_not_written_again(
    cluster: None, videos: Path, model: Path, tmp_path: Path
) -> None:
    def predicted(*named: Path) -> tuple[int, int]:
        config = PredictConfig(
            videos=list(map(str, named)), model=str(model), out=str(tmp_path), head="stored", num_actors=1
        )
        report = predict_many(config)
        return report.videos, report.done_before

    some = sorted((videos / "val").glob("*/*.*"))
    assert predicted(some[0], some[1]) == (2, 0)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert predicted(some[1], some[2]) == (3, 2)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(after) == 3 and before.items() <= after.items()
    assert {len(row) for row in pd.read_parquet(tmp_path).probabilities} == {3}


@pytest.mark.soak
def test_a_long_video_has_a_row_for_each_window_in_the_table_as_in_print(
    cluster: None, videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((videos / "val").glob("*/*.mp4"))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    command = ["predict", str(video), str(bad), "--model", str(model), "--every_seconds", "0.2"]
    command += ["--window_seconds", "0.3", "--head", "shapes"]
    assert main([*command, "--format", "json"]) == 2
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    rows = pd.read_parquet(tmp_path / "out").sort_values(["uri", "start_seconds"], ascending=[False, True])
    spans = [(0.0, 0.32), (0.2, 0.52), (0.4, 0.64)]
    for found in (rows.to_dict("records"), printed):
        assert [one["status"] for one in found] == ["ok", "ok", "ok", "undecodable"]
        assert [(one["start_seconds"], one["end_seconds"]) for one in found][:3] == spans
        assert [one["frames"] for one in found][:3] == [8, 8, 6]
    for row, line in zip(rows.logits[:3], printed, strict=False):
        assert row.tolist() == pytest.approx(line["heads"][0]["logits"], abs=1e-6)


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="window_seconds needs every_seconds"):
        PredictConfig(videos=["a"], window_seconds=1.0)
    with pytest.raises(ConfigError, match="at most 32 windows may overlap"):
        PredictConfig(videos=["a"], every_seconds=0.1, window_seconds=4.0)
    assert PredictConfig(videos=["a"], every_seconds=0.5).windows == (0.5, 2.0)
    assert PredictConfig(videos=["a"], every_seconds=5).windows == (5, 5)
