import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread

from twostream_ray.cli import main
from twostream_ray.data.shards import ShardSet
from twostream_ray.errors import ShardError
from twostream_ray.runs.config import InspectConfig
from twostream_ray.runs.inspect import inspect


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


def test_one_clip_can_be_drawn_alone_and_an_unknown_one_is_named(shard_set: ShardSet, tmp_path: Path) -> None:
    clip = shard_set.index["clip_id"][5].as_py()
    picture = str(tmp_path / "a.png")
    assert inspect(InspectConfig(shards=shard_set.uri, out=picture, clip=clip)).pictured == (clip,)
    with pytest.raises(ShardError, match=r"clip 'none.avi' was wanted of .*, it is not one of its 76"):
        inspect(InspectConfig(shards=shard_set.uri, out=picture, clip="none.avi"))


def test_verify_finds_a_single_flipped_bit_and_names_shard_and_row(
    shard_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shard_set.uri, copy)
    arguments = ["inspect", str(copy), "--out", str(tmp_path / "a.png"), "--verify", "true"]
    assert main(arguments) == 0
    assert "every byte is what its checksum says" in capsys.readouterr().out
    path = sorted((copy / "shards").iterdir())[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and path.name in error and "ingest again" in error
