import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_shards import noise_shards

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import SCHEMA, ShardSet, open_shards, read_row_group
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ShardError
from twostream_ray.runs.inspect import inspect
from twostream_ray.runs.settings import InspectConfig


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
    with pytest.raises(ShardError, match=r"it has no manifest.json: run `twostream ingest` first"):
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


def test_a_clip_is_once_in_each_of_its_splits_and_a_part_of_the_index_counts_from_its_own_start(
    shard_set: ShardSet,
) -> None:
    named = [["a", "b"], ["b", "b"], [], ["c"], ["a"]]
    index = shard_set.index.slice(0, 5).set_column(
        shard_set.index.column_names.index("splits"), "splits", pa.array(named, pa.list_(pa.string()))
    )
    listed = replace(shard_set, index=index)
    assert [listed.split(name).tolist() for name in "abc"] == [[0, 4], [0, 1], [3]]
    part = replace(shard_set, index=index.slice(1))
    assert [part.split(name).tolist() for name in "abc"] == [[3], [0], [2]]
    joined = replace(shard_set, index=pa.concat_tables([index.slice(1), index]))
    assert joined.split("a").tolist() == [3, 4, 8]


def test_an_unknown_split_is_answered_with_the_known_ones(shard_set: ShardSet) -> None:
    with pytest.raises(ShardError, match=r"has no split 'dev', it has test, train, val"):
        shard_set.split("dev")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two shards of 20 clips each, flow alone."""
    return noise_shards(str(tmp_path_factory.mktemp("noise")), rows=(20, 20), num_fields=4)


@pytest.fixture
def copy(noise: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(noise.uri, tmp_path / "set"))


def read_all(folder: Path) -> None:
    """What a training reads."""
    config = DataConfig(
        shards=str(folder),
        sampling=SamplingConfig(num_snippets=1, flow_length=2, min_stride_frames=1, max_stride_frames=1),
        transforms=TransformConfig(crop_px=16),
    )
    loader = SnippetLoader(
        open_shards(str(folder)),
        config=config,
        passes=[Pass(split="train", training=True)],
        global_batch=8,
        want_rgb=False,
        through_ray=False,
    )
    assert sum(batch.weights.sum() for _, batches in loader for batch in batches) == 40


def rewrite(
    folder: Path,
    rows: Callable[[list[dict[str, Any]]], object],
    *,
    schema: pa.Schema = SCHEMA,
    contract: FlowContract | None = None,
) -> Path:
    """Change the rows of the first shard, and let the manifest know its new size and hash."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["shards"][0]
    path = folder / "shards" / entry["name"]
    metadata, values = pq.read_schema(path).metadata, pq.read_table(path).to_pylist()
    if contract is not None:
        metadata = {b"flow_contract": json.dumps(contract.to_dict()).encode()}
    rows(values)
    table = pa.Table.from_pylist(values, schema=schema.with_metadata(metadata))
    pq.write_table(table, path, compression="none", row_group_size=16)
    content = path.read_bytes()
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_a_shard_exchanged_for_another_valid_one_is_never_read_under_the_others_labels(copy: Path) -> None:
    read_all(copy)
    first, second = (copy / "shards" / name for name in open_shards(str(copy)).shard_names)
    content = first.read_bytes()
    shutil.copy(second, first)
    with pytest.raises(ShardError, match=rf"{first.name}, row"):
        read_all(copy)
    second.write_bytes(content)  # both exchanged
    with pytest.raises(ShardError, match=r"parquet, row"):
        read_all(copy)


def test_a_shard_of_the_same_clips_with_other_flow_or_of_another_size_is_refused(
    noise: ShardSet, copy: Path, tmp_path: Path
) -> None:
    others = noise_shards(str(tmp_path / "others"), rows=(20, 20), num_fields=3)
    name = others.shard_names[0]
    shutil.copy(Path(others.uri) / "shards" / name, copy / "shards" / name)
    with pytest.raises(
        ShardError, match=rf"{name}, row group \d, cannot be read .*has \d+ bytes, its manifest says \d+"
    ):
        read_all(copy)
    shutil.copy(Path(noise.uri) / "shards" / name, copy / "shards" / name)
    read_all(copy)
    rewrite(copy, lambda rows: None, contract=FlowContract(short_side_px=16, algorithm="tvl1"))
    with pytest.raises(ShardError, match=rf"{name}, row group \d, has another flow contract than its manifest"):
        read_all(copy)


WRONG_ROWS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "holds clip 'x' of label": lambda rows: rows[3].update(clip_id="x"),
    "of label 1 with 5 frames, the index says": lambda rows: rows[3].update(label=1),
    "with 9 frames, the index says": lambda rows: rows[3].update(num_frames=9),
    "has rows without clip_id": lambda rows: rows[3].update(clip_id=None),
    "has rows without height": lambda rows: rows[3].update(height=None),
    "has rows without flow:": lambda rows: rows[3].update(flow=None),
    "has rows without flow: ": lambda rows: rows[3].update(flow=[None] * 4),
    "has fewer rows than its manifest says": lambda rows: rows.pop(),
    "says 5 frames of 16 x 0 px": lambda rows: rows[3].update(height=0),
    "says 5 frames of 1000000 x 16 px": lambda rows: rows[3].update(width=10**6),
    "px at inf a second": lambda rows: rows[3].update(fps=float("inf")),
    "px at nan a second": lambda rows: rows[3].update(fps=float("nan")),
    r"is damaged \(checksum\)": lambda rows: rows[3].update(flow=rows[3]["flow"][::-1]),
    r"is damaged \(checksum\): ": lambda rows: rows[3].update(flow_crc32=1),
}


@pytest.mark.parametrize("said", WRONG_ROWS)
def test_rows_that_are_not_what_the_index_says_end_in_one_line_that_names_the_shard(copy: Path, said: str) -> None:
    path = rewrite(copy, WRONG_ROWS[said])
    with pytest.raises(ShardError, match=said) as refused:
        read_all(copy)
    assert path.name in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("label", pa.string()), ("video", pa.string()), ("flow", pa.list_(pa.string())), ("num_frames", pa.float64())],
)
def test_a_shard_of_other_columns_is_refused(copy: Path, name: str, kind: pa.DataType) -> None:
    schema = pa.schema([(field.name, kind if field.name == name else field.type) for field in SCHEMA])

    def emptied(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row.update({name: None})

    rewrite(copy, emptied, schema=schema)
    with pytest.raises(ShardError, match=r"is not in a shard, the file has columns clip_id string, "):
        read_all(copy)


def test_a_shard_that_never_ends_or_is_no_file_is_refused(copy: Path) -> None:
    path = next(iter((copy / "shards").iterdir()))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ShardError, match=rf"{path.name}, row group \d, cannot be read .*expected a regular file"):
        read_all(copy)
    path.unlink()
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(ShardError, match=r"its file has 1099511627776 bytes, its manifest says"):
        read_all(copy)


def test_verify_finds_an_index_that_lies_of_labels_splits_or_names(copy: Path, tmp_path: Path) -> None:
    index, manifest = (copy / name for name in ("index.parquet", "manifest.json"))
    whole, said = index.read_bytes(), json.loads(manifest.read_text())
    lies: list[tuple[str, dict[str, Any], str]] = [
        ("label", {"classes": ["b", "c"]}, "the index says .*, label 1"),
        ("clip_id", {}, "the index says 'x'"),
        (
            "splits",
            {"splits": {"test": 1, "train": 39}},
            r"in train; index and manifest say '\d+.mp4' of class 'c' in test",
        ),
        ("", {"classes": ["other"]}, r"of class 'c' in train; index and manifest say '\d+.mp4' of class 'other'"),
    ]
    for name, changed, message in lies:
        rows = pq.read_table(index).to_pylist()
        if name:
            rows[7][name] = {"label": 1, "clip_id": "x", "splits": ["test"]}[name]
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(index)), index)
        sha256 = hashlib.sha256(index.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(said | changed | {"index_sha256": sha256}))
        with pytest.raises(ShardError, match=message):
            inspect(InspectConfig(shards=str(copy), out=str(tmp_path / "a.png"), verify=True))
        index.write_bytes(whole)
