import hashlib
from pathlib import Path

import pytest

from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.sources.open_source import open_source, source_sha256
from twostream_ray.errors import AccessError, DecodeError


def clip(uri: Path, *, frames: bool = False, flow: tuple[str, ...] = ()) -> Clip:
    return Clip(
        uri=str(uri), clip_id="a", size_bytes=1, label=0, class_name="c", splits=("train",), frames=frames,
        flow_uris=flow,
    )  # fmt: skip


def write(folder: Path, **contents: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)


def test_a_video_is_a_file_on_this_machine_with_its_own_hash(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a video")
    with open_source(clip(tmp_path / "a.mp4")) as source:
        assert isinstance(source.video, Path) and source.video.read_bytes() == b"a video"
        assert (source.frames, source.flow) == ((), None)
        assert source_sha256(source) == hashlib.sha256(b"a video").hexdigest()


def test_images_come_in_order_and_with_those_of_flow(tmp_path: Path) -> None:
    write(tmp_path / "frames", img_1=b"one", img_2=b"two", img_03=b"three")
    write(tmp_path / "flow", flow_x_1=b"x1", flow_y_1=b"y1", flow_x_2=b"x2", flow_y_2=b"y2")
    flow = (str(tmp_path / "flow"),) * 2
    with open_source(clip(tmp_path / "frames", frames=True, flow=flow)) as source:
        assert (source.video, source.frames) == (None, (b"one", b"two", b"three"))
        assert source.flow == ((b"x1", b"y1"), (b"x2", b"y2"))
        assert source_sha256(source) == hashlib.sha256(b"onetwothreex1y1x2y2").hexdigest()


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AccessError), open_source(clip(tmp_path / "nowhere.mp4")):
        pass
    write(tmp_path / "frames", img_1=b"one", img_3=b"three")
    with (
        pytest.raises(DecodeError, match=r"2 is missing of 1\.\.3"),
        open_source(clip(tmp_path / "frames", frames=True)),
    ):
        pass
