import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

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
    with pytest.raises(AccessError, match=r"cannot read .*nope: it does not exist; check the path"):
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
        with pytest.raises(StorageError, match="expected a bucket after s3://"):
            storage.absolute(uri)


def test_a_local_file_is_used_where_it_lies_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with storage.on_disk(f"file://{tmp_path}/x") as path:
        assert path == tmp_path / "x"
    assert path.exists()
    with (
        pytest.raises(AccessError, match=r"cannot read .*nope: it does not"),
        storage.on_disk(f"{tmp_path}/nope"),
    ):
        pass


def test_a_file_is_copied_to_its_place_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 1000)
    storage.write_file(f"{tmp_path}/below/y", tmp_path / "x")
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["y"]
    assert (tmp_path / "below/y").read_bytes() == (tmp_path / "x").read_bytes()


def test_a_file_that_does_not_fit_into_memory_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 30)
    code = (
        "import resource, sys; from twostream_ray import storage\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); storage.read_bytes(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "large")], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("large: it does not fit into memory")


@pytest.mark.parametrize("name", ["a?b", "a#b", "100%", "100%25", "a b+c&d", "~nobody-of-that-name", "-x", "[x]*"])
def test_signs_in_a_path_stand_for_themselves_and_in_a_file_uri_are_decoded(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / name
    storage.write_bytes(str(file), name.encode())
    assert file.read_bytes() == name.encode()
    assert storage.absolute(file.as_uri()) == storage.absolute(f"file://localhost{quote(str(file))}") == str(file)
    assert list(storage.list_files((tmp_path / name).as_uri())) == [(name, len(name))]
    assert storage.read_bytes(file.as_uri()) == name.encode()


@pytest.mark.parametrize("name", ["caf\udce9", "file:///caf%E9", "x\0y", "s3://bucket/\ud800"])
def test_a_name_that_is_no_text_is_refused_in_words_that_can_be_printed(name: str) -> None:
    with pytest.raises(StorageError, match="a path is UTF-8 without zero bytes, got") as refused:
        storage.exists(name)
    str(refused.value).encode()


def test_a_key_that_s3fs_would_take_for_another_object_is_refused() -> None:
    with pytest.raises(StorageError, match=r"expected a key without \?versionId=, got s3://b/x\?versionId=1: rename"):
        storage.write_bytes("s3://b/x?versionId=1", b"")
    assert storage.absolute("s3://b/x?version=1#%20") == "s3://b/x?version=1#%20"


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        StorageError, match="the working directory no longer exists, so x cannot be resolved: change to another"
    ):
        storage.absolute("x")
    assert storage.absolute("/x") == "/x"


def test_credentials_in_a_uri_are_refused_before_they_are_written_down() -> None:
    for uri in ("s3://key:se/cr@et@bucket/x", "s3://key@bucket", "s3://key:secret@bucket/a@b"):
        with pytest.raises(StorageError, match=r"credentials come from AWS_ACCESS_KEY_ID") as caught:
            storage.absolute(uri)
        assert "cr" not in str(caught.value).partition("credentials")[0]
    assert storage.absolute("s3://bucket/a@b:c") == "s3://bucket/a@b:c"
