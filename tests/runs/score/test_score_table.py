import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_tables import table_record, write_table
from torch.utils.data import DistributedSampler

from twostream_ray.data.views import ViewKey
from twostream_ray.errors import ConfigError, StorageError, TwoStreamError
from twostream_ray.runs.score.score_table import (
    ScoreTable,
    begin_table,
    has_table,
    iter_parts,
    read_table,
    refuse_foreign_table,
)
from twostream_ray.runs.score.table_record import TableRecord

LOGITS = np.random.default_rng(0).normal(size=(40, 2, 2, 3)).astype(np.float32)
BLOCKS = [list(range(16)), list(range(16, 32)), list(range(32, 40))]


def parts(out: Path) -> list[Path]:
    return sorted((out / "scores").glob("part-*.parquet"))


def test_a_table_that_was_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    groups = [None if at % 2 else f"g{at % 5}" for at in range(40)]
    views = (ViewKey(0, "top_left", True), ViewKey(7, "full", False))
    gone = ({"clip_id": "x", "uri": "x.avi", "reason": "DecodeError: cut"},)
    about = write_table(tmp_path, LOGITS, groups=groups, views=views, num_expected=41, quarantined=gone)
    for uri in (tmp_path, tmp_path / "scores"):
        assert has_table(str(uri))
        table = read_table(str(uri))
        assert table.logits.dtype == np.float32 and np.array_equal(table.logits, LOGITS)
        assert table.clip_ids.tolist() == [f"{at:04d}.avi" for at in range(40)]
        assert table.positions.tolist() == list(range(40))
        assert table.labels.tolist() == [at % 3 for at in range(40)]
        assert table.groups is not None
        assert table.groups[:3].tolist() == ["g0", "0001.avi", "g2"]
        assert (table.views, table.towers) == (views, ("spatial", "temporal"))
        assert (table.num_expected, table.quarantined) == (41, gone)
        assert table.to_dict() == about.to_dict() and table.identity == about.identity
    assert [len(part.labels) for part in iter_parts(str(tmp_path))] == [16, 16, 8]


def test_rows_of_a_part_are_for_any_program_that_reads_parquet(tmp_path: Path) -> None:
    write_table(tmp_path, LOGITS)
    rows = pq.read_table(parts(tmp_path)[2]).to_pylist()
    assert len(rows) == 8 * 2 * 2
    assert rows[5] == {
        "clip": 33,
        "clip_id": "0033.avi",
        "label": 0,
        "group": None,
        "view": 0,
        "time": 0,
        "crop": "centre",
        "mirrored": False,
        "tower": "temporal",
        "logits": LOGITS[33, 0, 1].tolist(),
    }
    about = json.loads(pq.read_schema(parts(tmp_path)[0]).metadata[b"twostream_ray"])
    assert about == json.loads((tmp_path / "scores/table.json").read_text())


def test_the_same_scores_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_table(tmp_path / name, LOGITS)
    assert [path.read_bytes() for path in parts(tmp_path / "one")] == [
        path.read_bytes() for path in parts(tmp_path / "two")
    ]


@pytest.mark.slow
@pytest.mark.real
def test_real_scores_of_two_towers_are_a_table_of_one_view(real: Path, tmp_path: Path) -> None:
    with np.load(real / "scores/ucf101_split1_two_stream_minli.npz") as arrays:
        stored = dict(arrays)
    both = np.stack([stored["spatial"], stored["temporal"]], axis=1)[:, None]
    write_table(tmp_path, both, labels=stored["label"], clip_ids=stored["names"])
    table = read_table(str(tmp_path))
    assert np.array_equal(table.logits, both) and table.logits.shape == (3783, 1, 2, 101)
    assert np.array_equal(table.labels, stored["label"]) and np.array_equal(table.clip_ids, stored["names"])
    assert [int((table.logits[:, 0, at].argmax(axis=1) == table.labels).sum()) for at in (0, 1)] == [3074, 3014]


def test_499_clips_are_499_rows_where_padding_would_make_512(tmp_path: Path) -> None:
    """The figures of docs/evaluation.md."""
    labels = np.arange(499) % 3
    right = np.arange(499) < 300
    shown = np.where(right, labels, (labels + 1) % 3)
    for first_are_right, padded_top1 in ((True, 313 / 512), (False, 300 / 512)):
        order = np.arange(499) if first_are_right else np.arange(499)[::-1]
        logits = np.eye(3, dtype=np.float32)[shown[order]][:, None, None]
        out = tmp_path / str(first_are_right)
        write_table(out, logits, labels=labels[order].tolist())
        table = read_table(str(out))
        hits = table.logits.mean(axis=(1, 2)).argmax(axis=1) == table.labels
        assert len(hits) == len(set(table.clip_ids)) == 499
        assert f"{hits.mean():.2%}" == "60.12%"
        samplers: list[Any] = [
            DistributedSampler(range(499), num_replicas=64, rank=rank, shuffle=False) for rank in range(64)
        ]
        padded = [clip for sampler in samplers for clip in sampler]
        assert len(padded) == 512
        assert hits[padded].mean() == padded_top1
    assert (f"{313 / 512:.2%}", f"{300 / 512:.2%}") == ("61.13%", "58.59%")


# -- resuming


def test_finished_parts_are_kept_and_only_the_others_are_wanted(tmp_path: Path) -> None:
    about = write_table(tmp_path, LOGITS, blocks=[0, 2])
    before = {path: path.stat().st_mtime_ns for path in parts(tmp_path)}
    assert begin_table(str(tmp_path), about, blocks=BLOCKS) == {0, 2}
    assert {path: path.stat().st_mtime_ns for path in parts(tmp_path)} == before
    write_table(tmp_path, LOGITS)
    assert np.array_equal(read_table(str(tmp_path)).logits, LOGITS)


def test_a_part_that_was_cut_or_is_of_other_clips_is_scored_again(tmp_path: Path) -> None:
    about = write_table(tmp_path, LOGITS)
    first, second, third = parts(tmp_path)
    first.write_bytes(first.read_bytes()[:-9])
    second.write_bytes(third.read_bytes())
    assert begin_table(str(tmp_path), about, blocks=BLOCKS) == {2}
    assert parts(tmp_path) == [third]


@pytest.mark.parametrize(
    "changed",
    [
        {"manifest_hash": "1a" * 32},
        {"split": "val"},
        {"model_sha256": "1a" * 32},
        {"settings_sha256": "1a" * 32},
        {"protocol": {"name": "fast"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_table_of_other_data_model_or_protocol_is_replaced(tmp_path: Path, changed: dict[str, object]) -> None:
    about = write_table(tmp_path, LOGITS)
    assert begin_table(str(tmp_path), replace(about, **changed), blocks=BLOCKS) == set()
    assert parts(tmp_path) == []
    with pytest.raises(StorageError, match="lacks 40 of 40 clips"):
        read_table(str(tmp_path))


def test_parts_that_other_code_has_scored_are_kept_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = write_table(tmp_path, LOGITS, blocks=[1])
    with caplog.at_level(logging.WARNING):
        assert begin_table(str(tmp_path), replace(about, commit="1f1f"), blocks=BLOCKS) == {1}
    assert "1 of 3 parts of" in caplog.text and "scored by code of commit 0d0d" in caplog.text
    assert read_table_record(tmp_path).commit == "0d0d"


def read_table_record(out: Path) -> TableRecord:
    return TableRecord.from_dict(json.loads((out / "scores/table.json").read_text()))


# -- what is refused


def test_a_table_that_is_not_whole_is_refused_with_the_command_that_finishes_it(tmp_path: Path) -> None:
    write_table(tmp_path, LOGITS, blocks=[0])
    said = (
        rf"{tmp_path}/scores lacks 24 of 40 clips, as its evaluation is unfinished: `twostream evaluate --model "
        rf"models:/two-stream/1 --shards shards --split test --out {tmp_path}` scores them and keeps the others"
    )
    with pytest.raises(StorageError, match=said):
        read_table(str(tmp_path))


def test_where_there_is_no_table_that_is_said(tmp_path: Path) -> None:
    assert not has_table(str(tmp_path))
    with pytest.raises(StorageError, match=r"there is no scores/table\.json: give the folder that `twostream evaluate"):
        read_table(str(tmp_path))


def test_a_part_that_is_damaged_doubled_or_of_another_table_is_named(tmp_path: Path) -> None:
    write_table(tmp_path, LOGITS)
    write_table(tmp_path / "other", LOGITS, split="val")
    first, second, third = parts(tmp_path)
    whole = second.read_bytes()
    damages = {
        "it belongs to another table": parts(tmp_path / "other")[1].read_bytes(),
        "is in two parts": first.read_bytes(),
        r"damaged \(": whole[: len(whole) // 2],
        "it is damaged": b"",
    }
    for said, content in damages.items():
        second.write_bytes(content)
        with pytest.raises(StorageError, match=said):
            read_table(str(tmp_path))
    second.write_bytes(whole)
    third.rename(third.with_name("part-00003.parquet"))
    with pytest.raises(StorageError, match="the table has 3 parts"):
        read_table(str(tmp_path))


@pytest.mark.slow
def test_a_bit_that_was_lost_is_found_or_changes_nothing(tmp_path: Path) -> None:
    write_table(tmp_path, LOGITS)
    (_, part, _), rng = parts(tmp_path), np.random.default_rng(0)
    whole = part.read_bytes()
    found = 0
    for at in rng.integers(0, len(whole), size=150):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        part.write_bytes(damaged)
        try:
            table = read_table(str(tmp_path))
        except TwoStreamError:
            found += 1
        else:
            assert np.array_equal(table.logits, LOGITS) and table.labels.tolist() == [at % 3 for at in range(40)]
    assert found > 50


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1}', b'{"format": 2, "identity": ""}'])
def test_a_record_of_somebody_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/table.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"evaluate wants to write .*/scores/table\.json, where there is a file that"):
        refuse_foreign_table(str(tmp_path), verb="evaluate")
    with pytest.raises(StorageError):
        read_table(str(tmp_path))


def test_parts_of_somebody_else_are_refused(tmp_path: Path) -> None:
    refuse_foreign_table(str(tmp_path), verb="evaluate")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"scores/part-00000\.parquet, where there is a file that it did not write"):
        refuse_foreign_table(str(tmp_path), verb="evaluate")


def test_a_record_whose_hash_is_not_its_own_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, LOGITS)
    path = tmp_path / "scores/table.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "val"'))
    with pytest.raises(StorageError, match="its record contradicts itself: delete its folder and evaluate again"):
        read_table(str(tmp_path))


def test_a_table_says_all_that_its_record_says() -> None:
    assert TableRecord.from_dict(table_record().to_dict()).to_dict() == table_record().to_dict()
    assert issubclass(ScoreTable, TableRecord)
