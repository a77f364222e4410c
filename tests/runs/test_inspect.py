import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread, imsave
from noise_shards import noise_shards
from whole_shards import write_shard

from twostream_ray import visualize
from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.shards.writer import plan_shards, write_manifest
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.video import second_decoder
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.runs.ingest import catalog_of
from twostream_ray.runs.inspect import inspect
from twostream_ray.runs.settings import IngestConfig, InspectConfig


def test_counts_are_those_of_the_set_and_the_picture_has_a_row_for_each_clip(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    found = inspect(InspectConfig(shards=shard_set.uri, out=str(tmp_path / "a.png"), num_clips=3))
    assert found.clips_by_split == {"test": 20, "train": 48, "val": 8}
    assert sum(found.clips_by_class.values()) == 76 and len(found.clips_by_class) == 4
    assert len(found.pictured) == 3
    inspect(InspectConfig(shards=shard_set.uri, out=str(tmp_path / "b.png"), num_clips=6))
    three, six = (imread(tmp_path / name).shape for name in ("a.png", "b.png"))
    assert six[0] == pytest.approx(2 * three[0], rel=0.05) and six[1] == three[1]


def test_each_row_says_class_split_frames_and_frame_rate(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []

    def record(clips: Any, views: Any, path: Path, **how: Any) -> None:
        drawn.append(how)
        imsave(path, np.zeros((2, 2)))

    monkeypatch.setattr(visualize, "contact_sheet", record)
    inspect(InspectConfig(shards=shard_set.uri, out=str(tmp_path / "a.png"), num_clips=3))
    clip = shard_set.index["clip_id"][5].as_py()
    inspect(InspectConfig(shards=shard_set.uri, out=str(tmp_path / "a.png"), clip=clip))
    several, one = (how["headings"] for how in drawn)
    assert len(several) == 3 and len(one) == 4 and one[1:] == [""] * 3
    number = shard_set.index["num_frames"][5].as_py()
    (split,) = shard_set.index["splits"][5].as_py()
    name, of_class = clip.rpartition("/")[2], shard_set.classes[shard_set.labels[5]]
    assert one[0] == f"{name}   class {of_class}   split {split}   {number} frames, 25 fps, 48 x 48 px"


def test_one_clip_can_be_drawn_alone_and_an_unknown_one_is_named(shard_set: ShardSet, tmp_path: Path) -> None:
    clip = shard_set.index["clip_id"][5].as_py()
    picture = str(tmp_path / "a.png")
    assert inspect(InspectConfig(shards=shard_set.uri, out=picture, clip=clip)).pictured == (clip,)
    with pytest.raises(ShardError, match=r"clip 'none.avi' was wanted of .*, but it is not one of its 76"):
        inspect(InspectConfig(shards=shard_set.uri, out=picture, clip="none.avi"))


def test_verify_finds_a_single_flipped_bit_and_names_shard_and_row(
    shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shard_set.uri, copy)
    arguments = ["inspect", str(copy), "--out", str(tmp_path / "a.png"), "--verify", "true"]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "every byte is what its checksum says; decord" in said
    path = sorted((copy / "shards").iterdir())[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and path.name in error and "ingest again" in error


def two_clips(videos: Path, out: str, contract: FlowContract) -> None:
    catalog = catalog_of(IngestConfig(catalog=CatalogConfig(root=str(videos / "val")), out=out))
    (plan,) = plan_shards(catalog.clips[:2], contract=contract, rows_per_shard=16)
    part = write_shard(plan, out=out, contract=contract, max_frames=100)
    write_manifest(out, parts=[part], classes=catalog.classes, contract=contract)


@pytest.mark.slow
@pytest.mark.skipif(not second_decoder.is_installed(), reason="decord has wheels for x86-64 only")
def test_verify_compares_frames_with_a_second_decoder_and_names_the_row_of_a_wrong_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_clips(videos, str(tmp_path / "shards"), FlowContract(short_side_px=64))
    config = InspectConfig(shards=str(tmp_path / "shards"), out=str(tmp_path / "a.png"), verify=True)
    assert inspect(config).second_opinion == "decord, a second decoder, fetches the same frames of 2 of 2 clips"
    monkeypatch.setattr(second_decoder, "fetch_frames", lambda *given, **named: 255 - fetch_frames(*given, **named))
    with pytest.raises(ShardError, match=r"row 0, frame \d+ fetched by decord differs .*: delete it and ingest again"):
        inspect(config)


def test_verify_says_where_there_is_no_second_decoder(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_decoder, "is_installed", lambda: False)
    found = inspect(InspectConfig(shards=shard_set.uri, out=str(tmp_path / "a.png"), verify=True))
    assert found.second_opinion == "decord is not installed: frames were not compared with a second decoder's"


def picture_of_others(path: Path, kind: str) -> None:
    if kind == "a photo":
        imsave(path, np.zeros((4, 4, 3)))
    elif kind == "a text":
        path.write_text("my notes")
    elif kind == "a cut picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    elif kind == "nothing":
        path.touch()
    elif kind == "a directory":
        path.mkdir()
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["a photo", "a text", "a cut picture", "nothing", "a directory", "a fifo"])
def test_nothing_but_an_earlier_picture_is_written_over(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = noise_shards(str(tmp_path / "shards"), rows=(3,), num_fields=2), tmp_path / "inspect.png"
    picture_of_others(out, kind)
    before = out.read_bytes() if out.is_file() else None
    assert main(["inspect", shards.uri, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "where there is a file that it did not write" in line and "choose another --out" in line
    assert before is None or out.read_bytes() == before


@pytest.mark.slow
def test_an_earlier_picture_is_written_over(videos: Path, tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    two_clips(videos, shards, FlowContract(short_side_px=48))
    out = tmp_path / "made" / "inspect.png"
    for clips in (1, 2):
        inspect(InspectConfig(shards=shards, out=str(out), num_clips=clips))
    assert [path.name for path in out.parent.iterdir()] == ["inspect.png"]


def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for target in ("/proc/x/inspect.png", str(tmp_path / "file/inspect.png")):
        assert main(["inspect", str(tmp_path / "no-shards"), "--out", target, "--verify", "true"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(Path(target).parent) in line
    with pytest.raises(ConfigError, match=r"out must name a file that ends in .png, got 'train.py'"):
        InspectConfig(shards="x", out="train.py")
