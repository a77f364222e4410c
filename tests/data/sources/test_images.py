from pathlib import Path

import cv2
import numpy as np
import pytest
from s3 import reached_at
from whole_shards import write_shard

from twostream_ray import storage
from twostream_ray.data import flow
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import open_shards, read_row_group
from twostream_ray.data.shards.writer import plan_shards, write_manifest
from twostream_ray.data.sources import images
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.video.pictures import read_image
from twostream_ray.data.video.prepare import Source
from twostream_ray.data.video.raw_video import FrameStream, ImageSequence
from twostream_ray.errors import AccessError, ConfigError, DecodeError
from twostream_ray.runs.ingest import catalog_of
from twostream_ray.runs.settings import IngestConfig

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
        ("{root}/a/flow_x_{{:05}}.jpg", "{root}/a/flow_y_{{:05}}.jpg"),
        ("{root}/a/x_{{:05}}.jpg", "{root}/a/y_{{:05}}.png"),
        ("{root}/u/a/frame{{:06}}.jpg", "{root}/v/a/frame{{:06}}.jpg"),
    ],
)
def test_flow_is_found_in_the_forms_of_the_usual_tools(tmp_path: Path, x: str, y: str) -> None:
    write_flow(fields_of(12), x.format(root=tmp_path), y.format(root=tmp_path))
    pairs = images.read_flow(*(str(Path(form.format(root=tmp_path)).parent) for form in (x, y)), name="a")
    levels = np.stack([[read_image(image, name="a", grey=True) for image in pair] for pair in pairs])
    values = flow.dequantise(levels, LEGACY)
    np.testing.assert_allclose(values[:, 0, :, :16], np.arange(12)[:, None, None] / 2 * np.ones((48, 16)), atol=0.4)
    np.testing.assert_allclose(values[:, 1, :, :16], 3, atol=0.4)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["flow_x_00003.jpg", "flow_y_00003.jpg"], "without a gap in .*/a, 3 is missing of 1..5"),
        (["flow_x_00001.jpg", "flow_y_00001.jpg"], "without a gap in .*/a, 1 is missing of 1..5"),
        (["flow_x_00001.jpg", "flow_y_00005.jpg"], "without a gap in .*/a, 1 is missing of 1..5"),
        (["flow_y_00005.jpg"], "with the same numbers, 5 has only one, in .*/a"),
        ([f"flow_y_{number:05}.jpg" for number in range(1, 6)], "flow_x_00001.jpg and flow_y_00001.jpg in"),
    ],
)
def test_flow_of_which_images_are_lost_is_refused(tmp_path: Path, lost: list[str], message: str) -> None:
    """Six frames go with five fields or six: a lost first one would shift all others unseen."""
    write_flow(fields_of(5), f"{tmp_path}/a/flow_x_{{:05}}.jpg", f"{tmp_path}/a/flow_y_{{:05}}.jpg")
    for name in lost:
        (tmp_path / "a" / name).unlink()
    with pytest.raises(DecodeError, match=f"clip: .*{message}"):
        images.read_flow(str(tmp_path / "a"), str(tmp_path / "a"), name="clip")


def test_a_number_that_is_there_twice_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    write_flow(fields_of(2), f"{tmp_path}/u/{{}}.jpg", f"{tmp_path}/v/{{}}.jpg")
    with pytest.raises(AccessError, match=r"cannot list .*/w: it does not exist"):
        images.read_flow(str(tmp_path / "u"), str(tmp_path / "w"), name="clip")
    with pytest.raises(DecodeError, match="expected numbered images with one prefix in"):
        images.read_frames(str(tmp_path), name="clip")
    (tmp_path / "v/02.jpg").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"clip: .*/v has number 2 twice, 02.jpg and 2.jpg: remove one"):
        images.read_flow(str(tmp_path / "u"), str(tmp_path / "v"), name="clip")


@pytest.mark.parametrize("dates", [["img_20260101120000"], ["1403636579763555584", "1403636579813555456"], ["9" * 200]])
def test_names_that_are_dates_are_no_numbers_of_frames(tmp_path: Path, dates: list[str]) -> None:
    for name in ("img_1", "img_2", *dates) if dates[0].startswith("img") else dates:
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    with pytest.raises(DecodeError, match=r"numbered without a gap in .*, \d is missing of 1\.\.\d+$"):
        images.read_frames(str(tmp_path), name="a")


def test_an_image_that_is_not_whole_or_too_large_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    for suffix in (".jpg", ".png"):
        content = cv2.imencode(suffix, noise)[1].tobytes()
        assert read_image(content, name="x").shape == (30, 40, 3)
        assert read_image(content, name="x", grey=True).shape == (30, 40)
        for length in (0, 10, 30, len(content) // 2, len(content) - 20):
            for grey in (False, True):
                with pytest.raises(DecodeError, match=r"^x: "):
                    read_image(content[:length], name="x", grey=grey)
    np.testing.assert_array_equal(read_image(content, name="x"), noise[..., ::-1])
    jpeg = bytearray(cv2.imencode(".jpg", noise)[1].tobytes())
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = b"\x9c\x40\x9c\x40"
    with pytest.raises(DecodeError, match="x: an image may have at most 64000000 pixels, this has 1600000000"):
        read_image(bytes(jpeg), name="x")


def test_frames_of_two_sizes_are_no_clip() -> None:
    sizes = [cv2.imencode(".png", np.zeros((48, width, 3), np.uint8))[1].tobytes() for width in (64, 64, 60)]
    with pytest.raises(DecodeError, match="a: expected frames of one size, frame 3 is 60x48 px, the first 64x48 px"):
        list(ImageSequence(sizes, name="a"))


def test_flow_stretches_with_a_long_side_that_a_tool_rounded_otherwise(video: Path, tmp_path: Path) -> None:
    """Common archives hold 340x256 beside our 342x256."""
    wide = np.broadcast_to(np.float32([5, -3]), (15, 48, 60, 2))
    write_flow(wide, f"{tmp_path}/x_{{:05}}.jpg", f"{tmp_path}/y_{{:05}}.jpg")
    pairs = tuple(images.read_flow(str(tmp_path), str(tmp_path), name="a"))
    clip = prepare_in_subprocess(Source(video=video.read_bytes(), flow=pairs), LEGACY, name="a")
    assert clip.flow is not None
    for k in range(15):
        values = flow.dequantise(flow.decode_field(clip.flow[k]), LEGACY)
        assert values.shape == (2, 48, 48)
        np.testing.assert_allclose(values.mean(axis=(1, 2)), [5 * 48 / 60, -3], atol=0.1)


def test_flow_that_does_not_fit_the_frames_is_refused(video: Path, tmp_path: Path) -> None:
    write_flow(fields_of(40), f"{tmp_path}/a/x_{{:05}}.jpg", f"{tmp_path}/a/y_{{:05}}.jpg")
    pairs = tuple(images.read_flow(str(tmp_path / "a"), str(tmp_path / "a"), name="a"))
    content = video.read_bytes()  # 16 frames
    with pytest.raises(DecodeError, match="expected 15 fields of flow for 16 frames, there are 40 images"):
        prepare_in_subprocess(Source(video=content, flow=pairs), LEGACY, name="a")
    with pytest.raises(DecodeError, match="a field of flow for every pair of frames, there are 9 images"):
        prepare_in_subprocess(Source(video=content, flow=pairs[:9]), LEGACY, name="a")
    larger = FlowContract(short_side_px=64, coding="legacy255")
    with pytest.raises(
        DecodeError, match=r"expected flow images of 64x64 .*, got 48x48 and 48x48: set flow.short_side_px to 48"
    ):
        prepare_in_subprocess(Source(video=content, flow=pairs[:15]), larger, name="a")
    assert prepare_in_subprocess(Source(video=content, flow=pairs[:16]), LEGACY, name="a").num_frames == 16, (
        "one more is usual"
    )
    broken = (*pairs[:7], (b"no image", pairs[7][1]), *pairs[8:15])
    with pytest.raises(DecodeError, match="a, flow 8: not a readable image, 8 bytes"):
        prepare_in_subprocess(Source(video=content, flow=broken), LEGACY, name="a")


def write_folders(video: Path, root: Path, *, clips: list[str]) -> list[np.ndarray]:
    """The frames of a video as folders of images below root/frames, and flow below root/flow."""
    frames = list(FrameStream(video.read_bytes()))
    for name in clips:
        (root / "frames" / name).mkdir(parents=True)
        for number, frame in enumerate(frames, start=1):
            path = root / "frames" / name / f"img_{number:05}.png"
            cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        folder = root / "flow" / name.removeprefix("train/")
        write_flow(fields_of(15), f"{folder}/flow_x_{{:05}}.jpg", f"{folder}/flow_y_{{:05}}.jpg")
    return frames


def test_folders_of_frames_and_flow_become_the_shards_that_their_video_would(video: Path, tmp_path: Path) -> None:
    frames = write_folders(video, tmp_path, clips=["train/jump/a", "train/run/b"])
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
    part = write_shard(plan, out=out, contract=LEGACY, max_frames=100)
    write_manifest(out, parts=[part], classes=catalog.classes, contract=LEGACY)
    (bad,) = part["quarantined"]
    assert bad["reason"].startswith("DecodeError: train/run/b: expected images numbered without a gap")
    shard_set = open_shards(out)
    uri = f"{out}/shards/{shard_set.shard_names[0]}"
    ((_, clip),) = read_row_group(uri, 0, want_rgb=True, want_flow=True, rows=[0])
    assert clip.num_frames == len(frames) == 16 and clip.video is not None and clip.flow is not None
    back = fetch_frames(clip.video, range(16), num_frames=16)
    assert np.abs(back.astype(int) - np.stack(frames)).mean() < 6
    values = flow.dequantise(np.stack([flow.decode_field(clip.flow[k]) for k in range(15)]), shard_set.contract)
    np.testing.assert_allclose(values[:, 0, :, :16], np.arange(15)[:, None, None] / 2 * np.ones((48, 16)), atol=0.4)


def test_flow_images_in_the_coding_of_computed_flow_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"flow.coding must be legacy255 with catalog.flow_images"):
        IngestConfig(catalog=CatalogConfig(root="a", flow_images="b"), out="c")


def test_folders_of_images_in_an_object_store_become_the_shards_that_folders_on_disk_do(
    video: Path, tmp_path: Path, object_store: int
) -> None:
    write_folders(video, tmp_path, clips=["train/jump/a"])
    records = []
    with reached_at(f"http://127.0.0.1:{object_store}"):
        remote = "s3://archive/images"
        for path in sorted(tmp_path.rglob("*.*")):
            storage.write_bytes(f"{remote}/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
        for root, out in ((str(tmp_path), f"{tmp_path}/shards"), (remote, "s3://archive/images-shards")):
            catalog_config = CatalogConfig(root=f"{root}/frames", frames=True, flow_images=f"{root}/flow")
            catalog = catalog_of(IngestConfig(catalog=catalog_config, out=out, flow=LEGACY))
            (plan,) = plan_shards(catalog.clips, contract=LEGACY, rows_per_shard=16)
            records.append(write_shard(plan, out=out, contract=LEGACY, max_frames=100))
    local, stored = records
    assert local == stored and local["clips"] and not local["quarantined"]
