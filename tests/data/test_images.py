from pathlib import Path

import cv2
import numpy as np
import pytest

from twostream_ray.data import flow, images
from twostream_ray.data.catalog import CatalogConfig
from twostream_ray.data.clips import FrameStream, fetch_frames, read_image
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.isolation import prepare_apart
from twostream_ray.data.shards import open_shards, plan_shards, read_row_group, write_manifest
from twostream_ray.data.snippets import Source
from twostream_ray.errors import AccessError, DecodeError
from twostream_ray.runs.config import IngestConfig
from twostream_ray.runs.ingest import catalog_of, write_shard

LEGACY = FlowContract(algorithm="tvl1", coding="legacy255", short_side_px=48, jpeg_quality=100)
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 100]


def fields_of(num_fields: int) -> np.ndarray:
    """Field k moves k / 2 px to the right and 3 down on its left half, nowhere on its right."""
    fields = np.zeros((num_fields, 48, 48, 2), np.float32)
    for k in range(num_fields):
        fields[k, :, :24] = (k / 2, 3.0)
    return fields


def write_flow(fields: np.ndarray, x: str, y: str) -> None:
    for number, field in enumerate(fields, start=1):
        levels = flow.quantise(field, LEGACY)
        for component, pattern in enumerate((x, y)):
            path = Path(pattern.format(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), levels[..., component], QUALITY)


@pytest.fixture(scope="module")
def video(videos: Path) -> Path:
    return sorted((videos / "train").rglob("*.avi"))[0]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("{root}/jump/a/flow_x_{{:05}}.jpg", "{root}/jump/a/flow_y_{{:05}}.jpg"),
        ("{root}/a/x_{{:05}}.jpg", "{root}/a/y_{{:05}}.jpg"),
        ("{root}/u/a/frame{{:06}}.jpg", "{root}/v/a/frame{{:06}}.jpg"),
        ("{root}/u/jump/a/frame{{:06}}.jpg", "{root}/v/jump/a/frame{{:06}}.jpg"),
    ],
)
def test_flow_is_found_in_the_forms_of_the_usual_tools(tmp_path: Path, x: str, y: str) -> None:
    write_flow(fields_of(12), x.format(root=tmp_path), y.format(root=tmp_path))
    pairs = images.read_flow(str(tmp_path), "train/jump/a", name="a")
    levels = np.stack([[read_image(image, name="a", grey=True) for image in pair] for pair in pairs])
    values = flow.dequantise(levels, LEGACY)
    np.testing.assert_allclose(values[:, 0, :, :16], np.arange(12)[:, None, None] / 2 * np.ones((48, 16)), atol=0.4)
    np.testing.assert_allclose(values[:, 1, :, :16], 3, atol=0.4)


def test_a_missing_number_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    write_flow(fields_of(5), f"{tmp_path}/a/flow_x_{{:05}}.jpg", f"{tmp_path}/a/flow_y_{{:05}}.jpg")
    (tmp_path / "a/flow_y_00003.jpg").unlink()
    with pytest.raises(DecodeError, match=r"clip: images numbered without a gap were wanted in .*/a, 3 is missing"):
        images.read_flow(str(tmp_path), "a", name="clip")
    with pytest.raises(AccessError, match=r"clip: flow images were wanted at .*check catalog.flow_images"):
        images.read_flow(str(tmp_path), "b", name="clip")
    with pytest.raises(DecodeError, match="a folder of images numbered with one prefix was wanted"):
        images.read_frames(str(tmp_path / "a" / ".."), name="clip")


def test_flow_that_does_not_fit_the_frames_is_refused(video: Path, tmp_path: Path) -> None:
    write_flow(fields_of(40), f"{tmp_path}/a/x_{{:05}}.jpg", f"{tmp_path}/a/y_{{:05}}.jpg")
    pairs = tuple(images.read_flow(str(tmp_path), "a", name="a"))
    content = video.read_bytes()  # 16 frames
    with pytest.raises(DecodeError, match="15 fields of flow were wanted for 16 frames, there are 40 images"):
        prepare_apart(Source(video=content, flow=pairs), LEGACY, name="a")
    with pytest.raises(DecodeError, match="a field of flow was wanted for every pair of frames, there are 9 images"):
        prepare_apart(Source(video=content, flow=pairs[:9]), LEGACY, name="a")
    larger = FlowContract(short_side_px=64, coding="legacy255")
    with pytest.raises(DecodeError, match=r"64x64 were wanted .*, got 48x48: set flow.short_side_px to 48"):
        prepare_apart(Source(video=content, flow=pairs[:15]), larger, name="a")
    assert prepare_apart(Source(video=content, flow=pairs[:16]), LEGACY, name="a").num_frames == 16, "one more is usual"
    broken = (*pairs[:7], (b"no image", pairs[7][1]), *pairs[8:15])
    with pytest.raises(DecodeError, match="a, flow 8: an image was wanted, 8 bytes are none"):
        prepare_apart(Source(video=content, flow=broken), LEGACY, name="a")


def test_folders_of_frames_and_flow_become_the_shards_that_their_video_would(video: Path, tmp_path: Path) -> None:
    frames = list(FrameStream(video.read_bytes()))
    for name in ("train/jump/a", "train/run/b"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number, frame in enumerate(frames, start=1):
            path = tmp_path / "frames" / name / f"img_{number:05}.png"
            cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        root = tmp_path / "flow" / name.removeprefix("train/")
        write_flow(fields_of(15), f"{root}/flow_x_{{:05}}.jpg", f"{root}/flow_y_{{:05}}.jpg")
    (tmp_path / "frames/train/run/b/img_00004.png").unlink()
    out = str(tmp_path / "shards")
    config = IngestConfig(
        catalog=CatalogConfig(root=str(tmp_path / "frames"), frames=True, flow_images=str(tmp_path / "flow")),
        out=out,
        flow=LEGACY,
    )
    catalog = catalog_of(config)
    assert [clip.clip_id for clip in catalog.clips] == ["train/jump/a", "train/run/b"]
    (plan,) = plan_shards(catalog.clips, contract=LEGACY, rows_per_shard=16)
    part = write_shard(plan, out=out, contract=LEGACY, max_frames=100, count=lambda _: None)
    write_manifest(out, parts=[part], classes=catalog.classes, contract=LEGACY)
    (bad,) = part["quarantined"]
    assert bad["reason"].startswith("DecodeError: train/run/b: images numbered without a gap were wanted")
    shard_set = open_shards(out)
    uri = f"{out}/shards/{shard_set.shard_names[0]}"
    ((_, clip),) = read_row_group(uri, 0, want_rgb=True, want_flow=True, rows=[0])
    assert clip.num_frames == len(frames) == 16 and clip.video is not None and clip.flow is not None
    back = fetch_frames(clip.video, range(16), num_frames=16)
    assert np.abs(back.astype(int) - np.stack(frames)).mean() < 6
    values = flow.dequantise(np.stack([flow.decode_field(clip.flow[k]) for k in range(15)]), shard_set.contract)
    np.testing.assert_allclose(values[:, 0, :, :16], np.arange(15)[:, None, None] / 2 * np.ones((48, 16)), atol=0.4)
