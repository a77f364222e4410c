from pathlib import Path

import pytest

from twostream_ray import storage
from twostream_ray.errors import AccessError, StorageError


def test_what_was_written_is_read_and_listed_in_order(tmp_path: Path) -> None:
    for name, content in (("b/2.bin", b"22"), ("a/1.bin", b"1")):
        storage.write_bytes(storage.join(str(tmp_path), name), content)
    assert list(storage.list_files(str(tmp_path))) == [("a/1.bin", 1), ("b/2.bin", 2)]
    assert storage.read_bytes(f"file://{tmp_path}/b/2.bin") == b"22"


def test_writing_leaves_no_partial_file_behind(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"old")
    storage.write_bytes(str(tmp_path / "x"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"new"


def test_empty_directories_are_listed_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "train" / "jump").mkdir(parents=True)
    assert list(storage.list_files(str(tmp_path))) == []
    assert list(storage.list_files(str(tmp_path), empty_directories=True)) == [("train/jump/", 0)]


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"cannot read .*nope: it is not there; check the path"):
        storage.read_bytes(str(tmp_path / "nope"))
    with pytest.raises(AccessError, match="cannot list"):
        list(storage.list_files(str(tmp_path / "nope")))


def test_other_schemes_are_refused() -> None:
    with pytest.raises(StorageError, match=r"local path, file:// or s3:// URI, got 'gs://bucket'"):
        storage.absolute("gs://bucket")


def test_deleting_twice_is_no_error(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"1")
    storage.delete(str(tmp_path / "x"))
    storage.delete(str(tmp_path / "x"))
    assert not storage.exists(str(tmp_path / "x"))


def test_a_store_without_a_bucket_is_no_local_directory() -> None:
    for uri in ("s3://", "s3:///"):
        with pytest.raises(StorageError, match="a bucket was wanted behind s3://"):
            storage.absolute(uri)


def test_a_local_file_is_used_where_it_lies_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with storage.on_disk(f"file://{tmp_path}/x") as path:
        assert path == tmp_path / "x"
    assert path.exists()
    with pytest.raises(AccessError, match=r"cannot read .*nope: it is not there"), storage.on_disk(f"{tmp_path}/nope"):
        pass


def test_a_file_is_copied_to_its_place_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 1000)
    storage.write_file(f"{tmp_path}/below/y", tmp_path / "x")
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["y"]
    assert (tmp_path / "below/y").read_bytes() == (tmp_path / "x").read_bytes()
