import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from foreign_videos import encoded, pictures
from whole_shards import write_shard

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.records import survey
from twostream_ray.data.shards.writer import plan_shards
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.video import isolation
from twostream_ray.data.video.raw_video import Note

SMALL = FlowContract(short_side_px=48)


def test_videos_with_too_many_frames_are_quarantined_until_the_limit_is_raised(videos: Path, tmp_path: Path) -> None:
    clips = [
        Clip(uri=str(path), clip_id=path.name, class_name="c", label=0, splits=("train",), size_bytes=1)
        for path in sorted(videos.glob("train/*/*.mp4"))[:2]
    ]
    (plan,) = plan_shards(clips, contract=SMALL, rows_per_shard=16)
    part = write_shard(plan, out=str(tmp_path), contract=SMALL, max_frames=10)
    assert len(part["quarantined"]) == 2 and part["shard"] is None
    assert part["quarantined"][0]["reason"].startswith("TooLongError: ")
    assert "a clip may have at most 10 frames, this has 16 or more" in part["quarantined"][0]["reason"]
    assert len(survey(str(tmp_path), clips=clips, contract=SMALL, max_frames=10).kept) == 1
    assert survey(str(tmp_path), clips=clips, contract=SMALL, max_frames=16).kept == []


@pytest.mark.timeout(60)
def test_videos_that_never_end_and_rates_that_are_none_stop_no_other_clip(tmp_path: Path) -> None:
    file = encoded("mpeg4", pictures(6), container="avi")
    offset = file.index(b"strh") + 28
    (tmp_path / "rate.avi").write_bytes(file[:offset] + b"\xff\xff\xff\xff" + file[offset + 4 :])
    os.mkfifo(tmp_path / "fifo.avi")
    (tmp_path / "zeros.avi").symlink_to("/dev/zero")
    with (tmp_path / "sparse.avi").open("wb") as sparse:
        sparse.truncate(1 << 42)
    clips = [
        Clip(uri=f"{tmp_path}/{name}.avi", clip_id=name, class_name="c", label=0, splits=("train",), size_bytes=1)
        for name in ("fifo", "rate", "sparse", "zeros")
    ]
    (plan,) = plan_shards(clips, contract=SMALL, rows_per_shard=16)
    part = write_shard(plan, out=str(tmp_path / "out"), contract=SMALL, max_frames=300)
    assert [(entry["identity"][0], entry["notes"]) for entry in part["clips"]] == [("rate", [Note.NO_RATE])]
    assert {entry["identity"][0] for entry in part["quarantined"]} == {"fifo", "sparse", "zeros"}


def a_second() -> bytes:
    """A transport stream of 30 frames: joined end to end it is a longer one, and nothing in it states its length."""
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    with av.open(file, mode="w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = rng.integers(0, 255, (48, 64, 3), np.uint8)
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_video_of_two_hours_is_quarantined_for_its_length_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "short.ts").write_bytes(content := a_second())
    (tmp_path / "long.ts").write_bytes(content * 7200)
    assert (tmp_path / "long.ts").stat().st_size > 100e6

    def shard(name: str) -> dict[str, Any]:
        clip = Clip(uri=f"{tmp_path}/{name}", clip_id=name, class_name="c", label=0, splits=("train",), size_bytes=1)
        (plan,) = plan_shards([clip], contract=SMALL, rows_per_shard=16)
        return write_shard(plan, out=str(tmp_path / "out"), contract=SMALL, max_frames=300)

    assert len(shard("short.ts")["clips"]) == 1
    processes = [Path("/proc/self"), Path(f"/proc/{isolation._pool.ids[-1]}")]
    for process in processes:
        (process / "clear_refs").write_text("5")  # forget the peak so far
    before = [megabytes(process, "VmRSS") for process in processes]
    (bad,) = shard("long.ts")["quarantined"]
    after = [megabytes(process, "VmHWM") for process in processes]
    assert bad["reason"].startswith("TooLongError: long.ts: a clip may have at most 300 frames, this has")
    with (tmp_path / "long.ts").open("rb") as file:
        assert bad["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    assert max(peak - held for peak, held in zip(after, before, strict=True)) < 50


def megabytes(process: Path, what: str) -> float:
    """A line of a process's status: VmRSS, memory that it has, or VmHWM, most that it had."""
    (size,) = re.findall(rf"{what}:\s+(\d+) kB", (process / "status").read_text())
    return int(size) / 1e3
