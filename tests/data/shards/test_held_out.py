import ast
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_shards import noise_shards

import twostream_ray
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.held_out import Part, part_named
from twostream_ray.data.shards.index import INDEX_SCHEMA, INDEX_SCHEMA_WITH_GROUPS
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.shards.writer import ShardWriter, plan_shards, write_manifest
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.sources.splits import group_of_name
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings, without_free_settings

CLASSES = ("Archery", "Dive")
UCF101 = [
    f"{name}/v_{name}_g{group:02}_c{clip:02}.avi" for name in CLASSES for group in range(8, 26) for clip in (1, 2, 3)
]


def shard_set_of(ids: Sequence[str], *, groups: Sequence[str] | None = None, split: str = "train1") -> ShardSet:
    rows = [
        {"clip_id": name, "label": CLASSES.index(name.split("/")[0]), "splits": [split], "num_frames": 9}
        | {"shard": 0, "row": row}
        for row, name in enumerate(ids)
    ]
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    return ShardSet(
        uri="shards",
        hash="0" * 64,
        classes=CLASSES,
        head_classes=(),
        contract=FlowContract(),
        shard_names=("a",),
        shard_sha256=("0" * 64,),
        shard_bytes=(1,),
        quarantined={},
        index=index if groups is None else index.append_column("group", pa.array(groups)),
    )


def clips_of(shard_set: ShardSet, split: str) -> list[str]:
    return [shard_set.index["clip_id"][int(clip)].as_py() for clip in shard_set.split(split)]


def test_the_parts_are_the_whole_split_without_a_clip_twice_and_without_a_source_in_both() -> None:
    shard_set = shard_set_of(UCF101)
    data = DataConfig(shards="shards", train_split="train1", validation_fraction=0.1)
    trained = clips_of(shard_set, data.split_to_train)
    validated = clips_of(shard_set, str(data.split_to_validate))
    assert sorted(trained + validated) == sorted(UCF101)
    assert not {*map(group_of_name, trained)} & {*map(group_of_name, validated)}
    assert [sum(clip.startswith(name) for clip in validated) for name in CLASSES] == [6, 6]  # 2 of 18 groups each


def test_the_parts_are_the_same_in_every_process_and_differ_by_their_own_seed_alone() -> None:
    data = DataConfig(shards="shards", train_split="train1", validation_fraction=0.2)
    shard_set = shard_set_of(UCF101)
    sent = pickle.loads(pickle.dumps(shard_set))
    for split in (data.split_to_train, str(data.split_to_validate)):
        assert clips_of(sent, split) == clips_of(shard_set, split)
    other = replace(data, validation_seed=1)
    assert clips_of(shard_set, str(other.split_to_validate)) != clips_of(shard_set, str(data.split_to_validate))


@pytest.mark.slow
def test_nothing_but_settings_and_messages_reads_the_splits_as_they_are_named() -> None:
    """Where a part is cut it stands for them: split_to_train and split_to_validate say what to take."""
    package = Path(twostream_ray.__file__).parent
    allowed = {"data/loading/settings.py", "runs/splits.py", "runs/search/settings.py"}
    found = {
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if str(path.relative_to(package)) not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("train_split", "validation_split")
    }
    assert not found


def test_groups_of_the_index_count_more_than_names() -> None:
    ids = [f"Dive/{number}.mp4" for number in range(40)]
    groups = [f"film{number // 4}" for number in range(40)]
    validated = clips_of(shard_set_of(ids, groups=groups), "train1.validation-0.25")
    films = {groups[ids.index(clip)] for clip in validated}
    assert len(validated) == 4 * len(films) and len(films) == 3


def test_a_clip_without_a_group_is_its_own() -> None:
    ids = [f"Dive/{number}.mp4" for number in range(40)]
    assert len(clips_of(shard_set_of(ids), "train1.validation-0.25")) == 10


def test_a_split_whose_classes_have_one_group_each_is_refused() -> None:
    ids = [f"Dive/v_Dive_g08_c{clip:02}.avi" for clip in range(9)]
    with pytest.raises(ShardError, match=r"validation_fraction=0\.1 .* split train1 .* one group of clips alone"):
        shard_set_of(ids).split("train1.validation-0.1")


def test_a_part_of_a_split_that_is_not_there_names_those_that_are() -> None:
    shard_set = shard_set_of(UCF101)
    shard_set.split("train1.validation-0.1")
    with pytest.raises(ShardError, match=r"shards has no split 'train', it has train1$"):
        shard_set.split("train.validation-0.1")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1 / 3, 0.001])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_parts_name_says_all_that_it_depends_on(fraction: float, seed: int) -> None:
    part = Part(split="train1", is_validation=True, fraction=fraction, seed=seed)
    read = part_named(part.name)
    assert read is not None and read.name == part.name
    assert (read.split, read.is_validation, read.seed) == ("train1", True, seed)
    assert read.fraction == pytest.approx(fraction, abs=1e-9)
    assert part_named("train1") is part_named("train1.validation-1.5") is part_named("train1.validation-0.0") is None


def test_a_split_and_a_fraction_to_validate_on_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r"set one of them to null"):
        DataConfig(shards="s", validation_split="val", validation_fraction=0.1)


def test_a_run_of_before_resumes_and_a_fraction_is_kept_to() -> None:
    plain = ExperimentConfig(name="n", data=DataConfig(shards="s"))
    before = fixed_settings(plain)
    assert "validation_seed" not in before["data"]
    del before["data"]["validation_fraction"]
    assert without_free_settings(before) == fixed_settings(plain)
    cut = ExperimentConfig(name="n", data=DataConfig(shards="s", validation_fraction=0.1))
    assert fixed_settings(cut)["data"]["validation_seed"] == 0


def test_a_loader_gives_the_clips_of_each_part_once(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=(9, 7), num_fields=2, video=True)
    config = DataConfig(
        shards=shard_set.uri,
        validation_fraction=0.25,
        sampling=SamplingConfig(num_snippets=1, flow_length=2, test_times=1),
        transforms=TransformConfig(crop_px=16, short_side_px=20),
        lanes=2,
    )
    parts = [config.split_to_train, str(config.split_to_validate)]
    passes = [Pass(split=split, training=split == config.split_to_train) for split in parts]
    loader = SnippetLoader(shard_set, config=config, passes=passes, global_batch=4, through_ray=False)
    seen = [sorted(int(clip) for batch in batches for clip in batch.clips) for _, batches in loader]
    assert [len(clips) for clips in seen] == [12, 4] and sorted(seen[0] + seen[1]) == list(range(16))


def test_the_index_has_a_column_of_groups_where_names_do_not_say_them(tmp_path: Path) -> None:
    contract = FlowContract(short_side_px=16)
    clips = [
        Clip(uri=f"{n}.mp4", clip_id=f"{n}.mp4", class_name="c", label=0, splits=("train",), size_bytes=n, group=group)
        for n, group in enumerate(["film1", "film1", "film2", ""])
    ]
    (plan,) = plan_shards(clips, contract=contract, rows_per_shard=4)
    writer = ShardWriter(plan, out=str(tmp_path), contract=contract)
    for clip in clips:
        writer.add(clip, EncodedClip(video=b"", flow=[], num_frames=1, height=16, width=16, fps=25.0), source_sha256="")
    part = writer.finish()
    for groups, schema in (
        ({clip.clip_id: clip.group for clip in clips}, INDEX_SCHEMA_WITH_GROUPS),
        ({clip.clip_id: group_of_name(clip.clip_id) for clip in clips}, INDEX_SCHEMA),
    ):
        write_manifest(str(tmp_path), parts=[part], classes=["c"], contract=contract, groups=groups)
        assert pq.read_schema(tmp_path / "index.parquet") == schema
        index = open_shards(str(tmp_path)).index.to_pylist()
        if "group" in schema.names:
            found = {row["clip_id"]: row["group"] for row in index}
            assert found == {"0.mp4": "film1", "1.mp4": "film1", "2.mp4": "film2", "3.mp4": "3.mp4"}
