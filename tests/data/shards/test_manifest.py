import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_shards import noise_shards

from twostream_ray.data.shards.index import INDEX_SCHEMA
from twostream_ray.data.shards.records import survey
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ShardError, StorageError, TwoStreamError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("noise")), rows=(5, 3), num_fields=2)


@pytest.fixture
def copy(whole: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.uri, tmp_path / "set"))


def change(copy: Path, **values: Any) -> None:
    """Set keys of the manifest; ... removes one."""
    manifest = json.loads((copy / "manifest.json").read_text()) | values
    (copy / "manifest.json").write_text(
        json.dumps({name: value for name, value in manifest.items() if value is not ...})
    )


def shard(**values: Any) -> list[dict[str, Any]]:
    return [{"name": f"{'a' * 16}-8.parquet", "rows": 8, "bytes": 1, "sha256": "0" * 64} | values]


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ...},
        {"index_sha256": ...},
        {"flow_contract": ...},
        {"shards": None},
        {"shards": {}},
        {"classes": "c"},
        {"classes": []},
        {"classes": [1]},
        {"classes": ["c", "c"]},
        {"head_classes": [2, 3]},
        {"head_classes": ["c"]},
        {"clips": 7},
        {"clips": -1},
        {"clips": 8.5},
        {"clips": "8"},
        {"frames": 1},
        {"splits": {"train": 7}},
        {"splits": []},
        {"quarantined_by_split": {"train": "many"}},
        {"index_sha256": "/home/me/precious.txt"},
        {"index_sha256": "0" * 63},
        {"flow_contract_hash": "0" * 12},
        {"flow_contract": {"algorithm": "dis", "bound_px": "20"}},
        {"flow_contract": 7},
        {"shards": shard(name="../../../etc/passwd")},
        {"shards": shard(name="/etc/passwd")},
        {"shards": shard(name=f"{'a' * 16}-8.parquet\n")},
        {"shards": shard(sha256="/home/me/precious.txt")},
        {"shards": shard(sha256="A" * 64)},
        {"shards": shard(rows=-1)},
        {"shards": shard(rows=2**60)},
        {"shards": shard(bytes=None)},
        {"shards": [shard()[0] | {"rows": 4}] * 2},
    ],
)
def test_a_manifest_is_checked_where_it_is_read(copy: Path, values: dict[str, Any]) -> None:
    change(copy, **values)
    with pytest.raises(ShardError, match=r"(manifest|index\.parquet).*: run `twostream ingest` again") as refused:
        open_shards(str(copy))
    assert str(copy) in str(refused.value) and "\n" not in str(refused.value)


def lying(copy: Path, lie: Callable[[list[dict[str, Any]]], object], *, schema: pa.Schema = INDEX_SCHEMA) -> None:
    """An index that says something else, and the manifest that names it by its hash."""
    rows = pq.read_table(copy / "index.parquet").to_pylist()
    lie(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), copy / "index.parquet")
    change(copy, index_sha256=hashlib.sha256((copy / "index.parquet").read_bytes()).hexdigest())


def wide(name: str, kind: pa.DataType) -> pa.Schema:
    return pa.schema([(field.name, kind if field.name == name else field.type) for field in INDEX_SCHEMA])


LIES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "a label beyond the classes": lambda rows: rows[2].update(label=1),
    "a negative label": lambda rows: rows[2].update(label=-1),
    "a shard that is not there": lambda rows: rows[2].update(shard=2),
    "a negative shard": lambda rows: rows[2].update(shard=-1),
    "a row beyond its shard": lambda rows: rows[-1].update(row=3),
    "a position twice": lambda rows: rows[1].update(row=rows[0]["row"]),
    "a clip twice": lambda rows: rows[1].update(clip_id=rows[0]["clip_id"]),
    "fewer rows": lambda rows: rows.pop(),
    "no rows": lambda rows: rows.clear(),
    "no name": lambda rows: rows[0].update(clip_id=None),
    "no label": lambda rows: rows[0].update(label=None),
    "no splits": lambda rows: rows[0].update(splits=None),
    "an empty split": lambda rows: rows[0].update(splits=[None]),
    "other splits": lambda rows: rows[0].update(splits=["test"]),
    "no frames": lambda rows: rows[0].update(num_frames=0),
    "other frames": lambda rows: rows[0].update(num_frames=2**31 - 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_contradicts_its_manifest_is_refused(copy: Path, lie: str) -> None:
    lying(copy, LIES[lie])
    with pytest.raises(ShardError, match=r"index\.parquet.*: run `twostream ingest` again") as refused:
        open_shards(str(copy))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [wide("label", pa.float64()), wide("row", pa.int64()), wide("clip_id", pa.large_string()), pa.schema([])],
)
def test_an_index_of_other_columns_is_refused(copy: Path, schema: pa.Schema) -> None:
    lying(copy, lambda rows: None, schema=schema)
    with pytest.raises(ShardError, match=r"index.parquet has the columns .*, wanted were clip_id string, label int32"):
        open_shards(str(copy))


def test_what_never_ends_is_not_read(copy: Path) -> None:
    for name in ("manifest.json", "index.parquet"):
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(StorageError, match=rf"{name}: expected a regular file, found a FIFO"):
            open_shards(str(copy))
        (copy / name).unlink()
        (copy / name).symlink_to("/dev/zero")
        with pytest.raises(StorageError, match=rf"{name}: expected a regular file, found a FIFO, socket or device"):
            open_shards(str(copy))
        (copy / name).unlink()
        with (copy / name).open("wb") as sparse:
            sparse.truncate(1 << 40)
        with pytest.raises(StorageError, match=rf"{name}: it may have at most \d+ bytes, it has 1099511627776"):
            open_shards(str(copy))
        (copy / name).write_bytes(content)
    record = min((copy / "parts").iterdir())
    record.unlink()
    os.mkfifo(record)
    found = survey(str(copy), clips=[], contract=open_shards(str(copy)).contract)
    assert [one.record["shard"] for one in found.stale] == [open_shards(str(copy)).shard_names[1]]


STRANGE: list[Any] = [None, True, -1, 2**70, 1.5, 1e308, "", "..", "/etc/passwd", "x" * 300]
STRANGE += [[], {}, [[[]]], {"a": 1}, "0" * 64]


def mutated(values: Any, draw: random.Random) -> Any:
    """The values with one key anywhere inside them changed, removed or doubled."""
    if isinstance(values, dict | list) and values and draw.random() < 0.85:
        key = draw.choice(list(values) if isinstance(values, dict) else range(len(values)))
        changed = dict(values) if isinstance(values, dict) else list(values)
        if draw.random() < 0.15:
            del changed[key]
        else:
            changed[key] = mutated(values[key], draw)
        return changed
    return draw.choice(STRANGE)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut out or put in."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice([1, 4, 100]))
    with_new = {"flip": bytes(draw.randrange(256) for _ in range(end - start)), "cut": b"", "more": content[start:] * 2}
    return content[:start] + with_new[draw.choice(list(with_new))] + content[end:]


@pytest.mark.slow
def test_200_mutated_manifests_records_and_indexes_are_one_line_each_or_as_they_were(
    whole: ShardSet, copy: Path
) -> None:
    draw, refused = random.Random(22), 0
    record = min((copy / "parts").iterdir())
    for number in range(200):
        path = [copy / "manifest.json", copy / "index.parquet", record][number % 3]
        content = path.read_bytes()
        if path.suffix == ".json" and number % 2:
            new = json.dumps(mutated(json.loads(content), draw)).encode()
        else:
            new = damaged(content, draw)
        path.write_bytes(new)
        if path.suffix == ".parquet":
            change(copy, index_sha256=hashlib.sha256(new).hexdigest())
        try:
            found = open_shards(str(copy))
            survey(str(copy), clips=[], contract=found.contract)
            assert set(found.shard_names) == set(whole.shard_names) and len(found.index) == 8
        except TwoStreamError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 700 and str(copy) in str(error), error
        finally:
            path.write_bytes(content)
            if path.suffix == ".parquet":
                change(copy, index_sha256=hashlib.sha256(content).hexdigest())
    assert refused > 120
    assert open_shards(str(copy)).index.equals(whole.index)


def test_an_index_larger_than_its_file_says_is_no_traceback(copy: Path) -> None:
    lying(copy, lambda rows: None)
    buffer = io.BytesIO((copy / "index.parquet").read_bytes()[:-20])
    (copy / "index.parquet").write_bytes(buffer.getvalue())
    change(copy, index_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    with pytest.raises(ShardError, match=r"index.parquet is not a readable index of shards"):
        open_shards(str(copy))
