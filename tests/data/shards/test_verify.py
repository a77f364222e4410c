import shutil
from pathlib import Path

import pytest
from noise_shards import noise_shards

from twostream_ray.data.shards.shards import open_shards
from twostream_ray.data.shards.verify import verify_shards
from twostream_ray.errors import DecodeError, ShardError


def test_a_whole_set_passes_and_reports_its_progress(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=(3, 17), num_fields=2)
    seen: list[tuple[int, int]] = []
    verify_shards(shard_set, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_bytes_that_no_row_reads_are_held_against_the_sha256(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path / "set"), rows=(3,), num_fields=2)
    path = tmp_path / "set/shards" / shard_set.shard_names[0]
    content = bytearray(path.read_bytes())
    content[2] ^= 1  # the magic number in front, which readers of Parquet skip
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"(sha256|cannot be read).*ingest again"):
        verify_shards(shard_set)


def test_a_shard_of_other_clips_is_refused(tmp_path: Path) -> None:
    one = noise_shards(str(tmp_path / "one"), rows=(3,), num_fields=2)
    other = noise_shards(str(tmp_path / "other"), rows=(3,), num_fields=3)
    name, theirs = one.shard_names[0], other.shard_names[0]
    shutil.copy(tmp_path / "other/shards" / theirs, tmp_path / "one/shards" / name)
    with pytest.raises(ShardError, match="ingest again"):
        verify_shards(open_shards(one.uri))


def test_each_clip_is_handed_out_after_its_shard_and_what_is_found_names_its_row(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=(3, 18), num_fields=2)
    seen: list[tuple[str, int]] = []
    verify_shards(shard_set, check_video=lambda clip_id, _, num_frames: seen.append((clip_id, num_frames)))
    assert sorted(seen) == sorted((f"{number}.mp4", 3) for number in range(21))

    def refuse(clip_id: str, video: memoryview, num_frames: int) -> None:
        if clip_id == seen[3 + 17][0]:
            raise DecodeError("a frame differs")

    with pytest.raises(ShardError, match=r"-18.parquet, row 17, a frame differs: delete it and ingest again"):
        verify_shards(shard_set, check_video=refuse)
