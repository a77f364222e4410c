import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise_shards import noise_shards

import twostream_ray
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards import index, manifest
from twostream_ray.data.shards.index import INDEX_SCHEMA, splits_by_code, text_hashes
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.storage import json_files


def shard_set_with(table: pa.Table) -> ShardSet:
    blank = dict.fromkeys(("uri", "hash"), "")
    empty = dict.fromkeys(("classes", "head_classes", "shard_names", "shard_sha256", "shard_bytes", "quarantined"), ())
    return ShardSet(**blank, **empty, contract=FlowContract(), index=table)


@given(st.lists(st.lists(st.sampled_from(["train1", "test2", "a", ""]), max_size=4)), st.integers(0, 3))
def test_each_clip_has_the_code_of_its_own_list_of_splits(lists: list[list[str]], begin: int) -> None:
    splits = pa.array(lists, pa.list_(pa.string()))[begin:]
    codes, known = splits_by_code(splits)
    assert [known[code] for code in codes] == lists[begin:]
    assert len(known) == len({*map(tuple, lists[begin:])})
    coded = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(known, pa.list_(pa.string())))
    again, of_dictionary = splits_by_code(coded)
    assert [of_dictionary[code] for code in again] == lists[begin:]


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(0, 5))
def test_texts_have_one_hash_if_and_only_if_they_are_one_text(texts: list[str], begin: int) -> None:
    array = pa.array(texts, pa.string())[begin:]
    hashes = text_hashes(array).tolist()
    assert hashes == [text_hashes(pa.array([text]))[0] for text in texts[begin:]]
    assert len({*hashes}) == len({*texts[begin:]})


def test_names_that_differ_by_a_digit_have_different_hashes() -> None:
    names = [f"class/{number:07}.mp4" for number in range(200_000)]
    assert len(np.unique(text_hashes(pa.array(names)))) == len(names)


def test_two_names_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = noise_shards(str(tmp_path), rows=(5, 3), num_fields=2)
    monkeypatch.setattr(index, "text_hashes", lambda texts: np.zeros(len(texts), np.uint64))
    assert open_shards(str(tmp_path)).index.equals(whole.index)


def test_clips_are_named_however_long_all_names_together_are() -> None:
    """Arrow's arrays of texts end at 2 GiB, and its `take` makes one of all that there are."""
    letters = pa.array([f"{number:0>1048576}" for number in range(64)])
    table = pa.table({"clip_id": pa.chunked_array([letters] * 40), "row": pa.array(np.arange(64 * 40))})
    assert table.nbytes > 2**31
    assert [int(name[-4:]) for name in shard_set_with(table).clip_ids([70, 64 * 40 - 1])] == [6, 63]


def test_nothing_takes_rows_of_the_index_by_way_of_all_names() -> None:
    package = Path(twostream_ray.__file__).parent
    found = {
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("take", "combine_chunks", "unique")
        and "index" in {ast.unparse(part).rpartition(".")[2] for part in ast.walk(node.value)}
    }
    assert not found


ODD: list[Any] = [{}, []]
STRANGE = [*ODD, None, True, -1, 0, 2**53, 2**70, 1.5, 8.0, "", "..", "/etc/passwd", "x" * 300, "0" * 64, "A" * 64]


@pytest.mark.parametrize("key", ["name", "rows", "bytes", "sha256", "other"])
def test_what_is_taken_for_a_shard_without_its_schema_is_one_by_its_schema(key: str) -> None:
    right = {"name": f"{'a' * 16}-8.parquet", "rows": 8, "bytes": 0, "sha256": "0" * 64}
    schema = manifest._MANIFEST["properties"]["shards"]["items"]
    validator = json_files._validator(json.dumps(schema))
    assert manifest._is_shard(right) and validator.is_valid(right)
    assert not manifest._is_shard({name: value for name, value in right.items() if name == "name"})
    taken = [value for value in STRANGE if manifest._is_shard(right | {key: value})]
    assert all(validator.is_valid(right | {key: value}) for value in taken)
    assert len(taken) < 4 or key == "other"


def test_the_index_in_memory_has_the_file_s_columns_in_fewer_bytes(tmp_path: Path) -> None:
    table = noise_shards(str(tmp_path), rows=(5, 3), num_fields=2, splits=("train1", "test2")).index
    assert table.column_names == INDEX_SCHEMA.names
    assert table["splits"].to_pylist() == [["train1", "test2"]] * 8
    assert all(table[name].type == pa.int16() for name in ("label", "num_frames", "shard", "row"))
