import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract, encode_field
from twostream_ray.data.shards.records import IngestState, delete_stale, refuse_loss, stale_notes, survey
from twostream_ray.data.shards.writer import ShardWriter, plan_shards, write_manifest
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.errors import ConfigError, ShardError

CONTRACT = FlowContract(short_side_px=16)
CLIPS = [
    Clip(
        uri=f"videos/{name}/{n}.avi",
        clip_id=f"{name}/{n}.avi",
        class_name=name,
        label=label,
        splits=("train",),
        size_bytes=100 * label + n,
    )
    for label, name in enumerate(("run", "sit", "walk"))
    for n in range(8)
]


def ingested(
    out: Path, clips: Sequence[Clip] = CLIPS, *, contract: FlowContract = CONTRACT, bad: dict[str, str] | None = None
) -> None:
    """A set of shards of four clips, a field of noise each; `bad` ones, clip id -> reason, are quarantined."""
    field = encode_field(np.random.default_rng(0).normal(size=(16, 16, 2)).astype(np.float32), contract)
    parts = []
    for plan in plan_shards(clips, contract=contract, rows_per_shard=4):
        writer = ShardWriter(plan, out=str(out), contract=contract, max_frames=100)
        for clip in plan.clips:
            if reason := (bad or {}).get(clip.clip_id):
                writer.quarantine(clip, reason=reason, sha256="")
            else:
                encoded = EncodedClip(video=b"", flow=[field], num_frames=2, height=16, width=16, fps=25.0)
                writer.add(clip, encoded, source_sha256="")
        parts.append(writer.finish())
    write_manifest(str(out), parts=parts, classes=["run", "sit", "walk"], contract=contract)


def surveyed(out: Path, clips: Sequence[Clip] = CLIPS, *, contract: FlowContract = CONTRACT) -> IngestState:
    return survey(str(out), clips=clips, contract=contract, max_frames=100)


def refuse(out: Path, clips: Sequence[Clip] = CLIPS, *, replaced: bool = False) -> None:
    refuse_loss(surveyed(out, clips), clips=clips, root="videos", replaced=replaced)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def foreign_files(out: Path) -> dict[str, bytes]:
    """Files of a user's that look like those of ingest, more and less."""
    shard = min((out / "shards").iterdir())
    looks_alike = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), looks_alike)
    made = {
        "parts/hand_brake.mp4": b"a part of a car",
        "parts/cut.json": b"{}",
        "parts/deep/wing.mp4": b"another",
        "parts/.hidden.partial": b"h",
        "shards/of_glass.mp4": b"a shard of glass",
        "shards/0123456789abcdef-3.parquet": looks_alike.getvalue().to_pybytes(),
        f"shards/{shard.name}.bak": shard.read_bytes(),
        f"shards/old/{shard.name}": shard.read_bytes(),
        "manifest.json.bak": b"m",
        "notes.txt": b"n",
    }
    for name, content in made.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return made


def test_only_what_records_name_is_deleted_whatever_else_lies_in_parts_and_shards(tmp_path: Path) -> None:
    ingested(tmp_path)
    own = set(files(tmp_path))
    others = foreign_files(tmp_path)
    other_flow = FlowContract(short_side_px=16, bound_px=5)
    notes = delete_stale(surveyed(tmp_path, contract=other_flow), written=[])
    left = files(tmp_path)
    assert {name: left[name] for name in others} == others
    assert set(left) - set(others) == {"manifest.json", "index.parquet", "quarantine.csv"}
    assert len(own) == 3 + 2 * 6
    assert notes[0] == "6 finished shards went: its flow contract differs, for example bound_px 20.0, not 5"
    assert notes[1].startswith("8 files in parts/ and shards/ of ") and "left alone" in notes[1]


def test_a_file_that_took_the_place_of_a_shard_is_not_the_records_and_stays(tmp_path: Path) -> None:
    ingested(tmp_path)
    larger, same_size, *_ = sorted((tmp_path / "shards").iterdir())
    larger.write_bytes(b"holiday.mp4, renamed")
    same_size.write_bytes(bytes(same_size.stat().st_size))
    delete_stale(surveyed(tmp_path, contract=FlowContract(short_side_px=16, bound_px=5)), written=[])
    assert sorted((tmp_path / "shards").iterdir()) == [larger, same_size]


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ("../../precious.parquet", "its shard"),
        ("/home/me/precious.txt", "its shard"),
        ("of_glass.mp4", "its shard"),
        ("0123456789abcdef-4.parquet", "contradict each other"),
    ],
)
def test_a_record_that_names_a_file_of_others_is_refused_and_nothing_is_deleted(
    tmp_path: Path, named: str, wanted: str
) -> None:
    ingested(tmp_path / "set")
    precious = [tmp_path / "precious.parquet", tmp_path / "set/shards/of_glass.mp4"]
    for path in precious:
        path.write_bytes(b"precious")
    record = min((tmp_path / "set/parts").iterdir())
    values = json.loads(record.read_text()) | {"shard": named}
    record.write_text(json.dumps(values))
    with pytest.raises(ShardError, match=rf"{record.name}( is not a valid record)?, .*{wanted}"):
        surveyed(tmp_path / "set", [])
    assert all(path.read_bytes() == b"precious" for path in precious)


def test_why_finished_shards_go_is_said_by_kind_and_example(tmp_path: Path) -> None:
    ingested(tmp_path)
    assert not surveyed(tmp_path).stale and len(surveyed(tmp_path).kept) == 6
    first = CLIPS[0]
    cases = {
        "a video has changed": [replace(first, size_bytes=1), *CLIPS[1:]],
        "the catalog no longer has one of the clips": CLIPS[1:],
        "labels or splits have changed": [replace(first, splits=("test",)), *CLIPS[1:]],
    }
    for why, clips in cases.items():
        standing = surveyed(tmp_path, clips)
        assert stale_notes(standing.stale, "went") == [f"1 finished shard went: {why}, for example run/0.avi"]
        refuse(tmp_path, clips)


def test_what_could_not_be_read_is_tried_again_and_what_was_bad_is_not(tmp_path: Path) -> None:
    ingested(tmp_path, bad={"walk/1.avi": "DecodeError: cut", "sit/0.avi": "MissingError: cannot list f/x: not there"})
    without_flow = [replace(clip, flow_uris=(f"f/{'x' if clip.label == 1 else 'y'}",)) for clip in CLIPS]
    assert not surveyed(tmp_path, without_flow).stale
    for kind in ("AccessError: cannot read run/0.avi: access denied", "MissingError: cannot read run/0.avi: not there"):
        ingested(tmp_path, bad={"run/0.avi": kind})
        (stale,) = surveyed(tmp_path).stale
        assert (stale.why, stale.example) == ("a video that could not be read is tried again", "run/0.avi")


def test_clips_are_in_one_shard_though_two_hold_them(tmp_path: Path) -> None:
    ingested(tmp_path, CLIPS[:8])
    ingested(tmp_path, CLIPS)  # killed before it deleted the first ones
    held = [entry["identity"][0] for values in surveyed(tmp_path).kept for entry in values["clips"]]
    assert len(held) == len(set(held))


def other_set() -> list[Clip]:
    """Another data set with the same names of classes and files, as 001.avi often is."""
    return [replace(clip, size_bytes=clip.size_bytes + 1000) for clip in CLIPS]


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        (other_set(), r"holds the finished shards of another data set: none of its 24 clips, as run/0.avi, is in"),
        ([replace(clip, clip_id=f"second/{clip.clip_id}") for clip in CLIPS], r"of another data set: none of its 24"),
        (CLIPS[8:], r"finished shards with 8 clips of folders in which the catalog of videos has none now, as run/0"),
        ([CLIPS[0], CLIPS[-1]], r"finished shards with 8 clips of folders in which .* as sit/0.avi"),
    ],
)
def test_another_data_set_and_a_folder_that_cannot_be_read_take_no_finished_shard_along(
    tmp_path: Path, clips: list[Clip], said: str
) -> None:
    ingested(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=rf"{said}.*--replace true"):
        refuse(tmp_path, clips)
    assert files(tmp_path) == before and len(surveyed(tmp_path).kept) == 6, "the folder is there again"
    refuse(tmp_path, clips, replaced=True)


def test_a_set_whose_records_are_gone_is_not_written_over(tmp_path: Path) -> None:
    ingested(tmp_path)
    shutil.rmtree(tmp_path / "parts")
    with pytest.raises(ConfigError, match=r"holds a set whose shards, as \S+.parquet, have no record in parts/"):
        refuse(tmp_path)
    refuse(tmp_path, replaced=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b'{"name": "an app", "icons": []}'),
        ("manifest.json", b"not JSON"),
        ("manifest.json", b'{"format": 2, "classes": ["a"]}'),
        ("quarantine.csv", b"patient,since\n7,2020\n"),
        ("index.parquet", b"PAR1 of somebody else"),
    ],
)
def test_a_file_of_others_under_a_name_of_ours_is_not_written_over(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for replaced in (False, True):
        with pytest.raises((ConfigError, ShardError), match=rf"{name}.*: move it away, or choose another --out"):
            refuse(tmp_path, replaced=replaced)


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    ingested(tmp_path)
    own = files(tmp_path)
    for name in (
        "shards/.0123456789abcdef-4.parquet.00ff00ff.partial",
        "parts/.0123456789abcdef.json.0000000a.partial",
    ):
        (tmp_path / name).write_bytes(b"half")
    assert delete_stale(surveyed(tmp_path), written=surveyed(tmp_path).kept) == []
    assert files(tmp_path) == own
