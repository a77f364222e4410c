import json
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet
from twostream_ray.data.shards.writer import plan_shards
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.video import encoder

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


def test_another_encoder_gives_other_addresses_and_the_same_one_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys(CLIPS) == keys(CLIPS)
    before, versions = keys(CLIPS), encoder.versions()
    for name in versions:
        monkeypatch.setattr(encoder, "versions", lambda name=name: {**versions, name: "another"})
        assert not before & keys(CLIPS)


def test_every_shard_has_the_versions_of_its_encoder_in_its_record(shard_set: ShardSet) -> None:
    versions = encoder.versions()
    assert versions["x264"].startswith("core 1") and av.__version__ == versions["pyav"]
    records = [json.loads(path.read_text()) for path in Path(shard_set.uri, "parts").iterdir()]
    assert records and all(record["encoder"] == versions for record in records)


def test_shards_have_the_contracted_layout(shard_set: ShardSet) -> None:
    for name in shard_set.shard_names:
        file = pq.ParquetFile(Path(shard_set.uri) / "shards" / name)
        assert file.metadata.row_group(0).num_rows <= ROWS_PER_GROUP
        assert file.metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
        assert str(file.schema_arrow.field("video").type) == "large_binary"
        assert str(file.schema_arrow.field("flow").type) == "list<element: large_binary>"
        stored = json.loads(file.schema_arrow.metadata[b"flow_contract"])
        assert FlowContract.from_dict(stored) == shard_set.contract
