"""Whole runs of ingest: what is in the shards shows what the sources show."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet, open_shards, read_row_group
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.runs.ingest import ingest
from twostream_ray.runs.settings import IngestConfig


def test_every_video_is_in_the_shards_once_with_its_label(shard_set: ShardSet, videos: Path) -> None:
    ids = shard_set.index["clip_id"].to_pylist()
    on_disk = [path.relative_to(videos).as_posix() for path in videos.rglob("*") if path.suffix in (".mp4", ".avi")]
    assert sorted(ids) == sorted(on_disk) and len(ids) == 76
    for clip_id, label in zip(ids, shard_set.labels, strict=True):
        assert clip_id.split("/")[1] == shard_set.classes[label]
    assert {name: len(shard_set.split(name)) for name in ("train", "val", "test")} == {
        "train": 48,
        "val": 8,
        "test": 20,
    }


@pytest.mark.timeout(600)
def test_every_frame_of_every_real_clip_fetched_in_random_order_is_the_right_one(
    cluster: None, real: Path, tmp_path: Path
) -> None:
    ingest(
        IngestConfig(
            catalog=CatalogConfig(
                layout="ucf101", root=str(real / "ucf101"), lists=str(real / "lists/ucf101_official_crlf")
            ),
            out=str(tmp_path),
            flow=FlowContract(short_side_px=128),  # flow takes long, and it is the frames that are looked at
            rows_per_shard=16,
            max_bad_fraction=1.0,  # 29 of the 13,320 videos that the lists name are there
        )
    )
    shard_set = open_shards(str(tmp_path))
    expected = json.loads((real / "expected/decode_expected.json").read_text())
    thumbs = np.load(real / "expected/frame_thumbs.npz")
    index = shard_set.index.to_pylist()
    assert len(index) == 29

    def check(row: dict[str, Any]) -> int:
        name = f"ucf101/{row['clip_id']}"
        assert row["num_frames"] == expected[name]["pyav18"]["frames"], name
        uri = f"{tmp_path}/shards/{shard_set.shard_names[row['shard']]}"
        group, number = divmod(row["row"], ROWS_PER_GROUP)
        ((clip_id, clip),) = read_row_group(uri, group, want_rgb=True, want_flow=True, rows=[number])
        assert clip_id == row["clip_id"] and clip.flow is not None and len(clip.flow) == clip.num_frames - 1
        order = np.random.default_rng(0).permutation(clip.num_frames)
        frames = fetch_frames(clip.video, order.tolist(), num_frames=clip.num_frames)
        truth = thumbs[name].astype(float)
        seen = np.empty((clip.num_frames, 6, 8))
        for position, frame in zip(order, frames, strict=True):
            grey = frame.mean(axis=2, dtype=np.float32)
            seen[position] = cv2.resize(grey, (8, 6), interpolation=cv2.INTER_AREA)
        distance = np.abs(truth.reshape(1, -1, 6, 8) - seen[:, None]).mean(axis=(2, 3))
        own = np.diag(distance)
        # Frames of a still scene are all but equal: the right one may tie with them, within coding noise.
        assert own.max() <= 2 and (own - distance.min(axis=1)).max() <= 1, name
        # A shift by a single frame would make the neighbours fit better.
        assert own.mean() < min(np.diag(distance, 1).mean(), np.diag(distance, -1).mean()) + 0.05, name
        return clip.num_frames

    with ThreadPoolExecutor(2) as threads:
        checked = sum(threads.map(check, index))
    assert checked == sum(row["num_frames"] for row in index) == 4196


def test_frames_of_shards_show_what_the_source_shows(shard_set: ShardSet, videos: Path) -> None:
    row = shard_set.index.to_pylist()[0]
    uri = f"{shard_set.uri}/shards/{shard_set.shard_names[row['shard']]}"
    ((clip_id, clip),) = read_row_group(uri, 0, want_rgb=True, want_flow=False, rows=[row["row"]])
    source = np.stack(list(FrameStream((videos / clip_id).read_bytes())))
    stored = fetch_frames(clip.video, range(clip.num_frames), num_frames=clip.num_frames)
    assert np.abs(stored.astype(int) - source).mean() < 4
