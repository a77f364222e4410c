import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from twostream_ray.data.catalog import Clip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards import ROWS_PER_GROUP, ShardSet, open_shards, plan_shards, read_row_group
from twostream_ray.errors import ShardError

CLIPS = [
    Clip(uri=f"v/{n}.avi", clip_id=f"{n}.avi", class_name="a", label=0, splits=("train",), size_bytes=n)
    for n in range(100)
]


def keys(clips: list[Clip]) -> set[str]:
    return {plan.key for plan in plan_shards(clips, contract=FlowContract(), rows_per_shard=16)}


def test_the_plan_depends_on_the_clips_and_not_on_their_order() -> None:
    assert keys(CLIPS) == keys(CLIPS[::-1])
    plans = plan_shards(CLIPS, contract=FlowContract(), rows_per_shard=16)
    assert sorted(clip.clip_id for plan in plans for clip in plan.clips) == sorted(clip.clip_id for clip in CLIPS)
    assert [len(plan.clips) for plan in plans] == [16] * 6 + [4]


def test_clips_are_shuffled_before_sharding() -> None:
    first = plan_shards(CLIPS, contract=FlowContract(), rows_per_shard=16)[0]
    numbers = [clip.size_bytes for clip in first.clips]
    assert numbers != sorted(numbers) and max(numbers) - min(numbers) > 50


def test_planning_what_an_interrupted_ingest_left_gives_the_same_shards() -> None:
    plans = plan_shards(CLIPS, contract=FlowContract(), rows_per_shard=16)
    done = {clip.clip_id for plan in (plans[1], plans[4]) for clip in plan.clips}
    rest = keys([clip for clip in CLIPS if clip.clip_id not in done])
    assert rest | {plans[1].key, plans[4].key} == keys(CLIPS)


def test_another_flow_contract_gives_other_shards() -> None:
    other = {plan.key for plan in plan_shards(CLIPS, contract=FlowContract(bound_px=15), rows_per_shard=16)}
    assert not other & keys(CLIPS)


def test_shards_have_the_contracted_layout(shard_set: ShardSet) -> None:
    for name in shard_set.shard_names:
        file = pq.ParquetFile(Path(shard_set.uri) / "shards" / name)
        assert file.metadata.row_group(0).num_rows <= ROWS_PER_GROUP
        assert file.metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
        assert str(file.schema_arrow.field("video").type) == "large_binary"
        assert str(file.schema_arrow.field("flow").type) == "list<element: large_binary>"
        stored = json.loads(file.schema_arrow.metadata[b"flow_contract"])
        assert FlowContract.from_dict(stored) == shard_set.contract


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
