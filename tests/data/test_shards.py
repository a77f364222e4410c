import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from twostream_ray.data.shards import ShardSet, open_shards, read_row_group
from twostream_ray.errors import ShardError


def test_one_stream_is_read_without_the_other(shard_set: ShardSet) -> None:
    uri = f"{shard_set.uri}/shards/{shard_set.shard_names[0]}"
    ((_, rgb_only),) = read_row_group(uri, 0, want_rgb=True, want_flow=False, rows=[0])
    ((_, flow_only),) = read_row_group(uri, 0, want_rgb=False, want_flow=True, rows=[0])
    assert rgb_only.flow is None and rgb_only.video is not None
    assert flow_only.video is None and flow_only.flow is not None and len(flow_only.flow) == flow_only.num_frames - 1


def test_a_flipped_bit_is_an_error_that_names_shard_and_row(shard_set: ShardSet, tmp_path: Path) -> None:
    source = Path(shard_set.uri) / "shards" / shard_set.shard_names[0]
    table = pq.read_table(source)
    video = bytearray(table["video"][3].as_py())
    content = bytearray(source.read_bytes())
    at = content.find(bytes(video))
    content[at + len(video) // 2] ^= 1
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(content)
    with pytest.raises(ShardError, match=r"damaged.parquet, row 3, is damaged \(checksum\)"):
        list(read_row_group(str(damaged), 0, want_rgb=True, want_flow=True, rows=[2, 3]))


def test_a_place_without_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"there is no manifest.json: run `twostream ingest` first"):
        open_shards(str(tmp_path))


def test_an_index_that_is_not_the_manifests_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    for name in ("manifest.json", "index.parquet"):
        shutil.copy(Path(shard_set.uri) / name, tmp_path / name)
    with (tmp_path / "index.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ShardError, match=r"index.parquet does not belong to its manifest"):
        open_shards(str(tmp_path))


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ShardError, match=r"has format 99, this version reads format 2"):
        open_shards(str(tmp_path))


def test_an_unknown_split_is_answered_with_the_known_ones(shard_set: ShardSet) -> None:
    with pytest.raises(ShardError, match=r"split 'dev' was wanted of .*, it has test, train, val"):
        shard_set.split("dev")
