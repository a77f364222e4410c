import shutil
from pathlib import Path

import pytest
from noise_shards import noise_shards

from twostream_ray.data.shards.shards import open_shards
from twostream_ray.data.shards.verify import verify_shards
from twostream_ray.errors import ShardError


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
