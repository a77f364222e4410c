from pathlib import Path

import pytest
from running_service import RunningService, running_service

from twostream_ray.errors import ConfigError
from twostream_ray.serving.samples import SampleClips
from twostream_ray.serving.settings import ServeConfig


def test_without_a_folder_there_is_a_moving_shape_of_each_direction(service: RunningService) -> None:
    samples = service.get("/samples").json["samples"]
    assert [sample["name"] for sample in samples] == ["red_right.mp4", "red_down.mp4", "red_left.mp4", "red_up.mp4"]
    clip = service.get("/samples/red_down.mp4")
    assert (clip.status, clip.headers["content-type"]) == (200, "video/mp4")
    assert service.post("/predict", clip.content).json["video"]["frames"] == 25
    assert service.get("/samples/red_down.mp4").content == clip.content


def test_a_folder_gives_its_first_videos_and_nothing_else(tmp_path: Path, model_folder: Path, video: bytes) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(14):
        (folder / f"a_clip_{number:02d}.MP4").write_bytes(video)
    (folder / "notes.txt").write_text("not for everybody")
    (tmp_path / "outside.mp4").write_bytes(video)
    with running_service(ServeConfig(model=str(model_folder), samples=str(folder))) as running:
        samples = running.get("/samples").json["samples"]
        assert len(samples) == 12 and samples[0] == {"name": "a_clip_00.MP4", "title": "a clip 00"}
        assert running.get("/samples/a_clip_00.MP4").content == video
        for name in ("a_clip_13.MP4", "notes.txt", "..%2Foutside.mp4", "%2Fetc%2Fpasswd"):
            assert running.get(f"/samples/{name}").status == 404, name


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_videos_is_refused(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "samples"
    if there:
        folder.mkdir()
    with pytest.raises(ConfigError, match="samples must be a folder of videos"):
        SampleClips(str(folder))
