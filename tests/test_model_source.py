from pathlib import Path

import pytest

from twostream_ray.errors import StorageError
from twostream_ray.model_source import local_model
from twostream_ray.tracking import TrackingConfig


def test_a_directory_of_this_machine_is_used_where_it_is_and_stays(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with local_model(str(tmp_path), config=TrackingConfig()) as directory:
        assert directory == tmp_path
    assert (tmp_path / "model.json").exists()


def test_a_directory_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"the directory does not exist: give models:/NAME@champion, or a directory"),
        local_model(str(tmp_path / "nowhere"), config=TrackingConfig()),
    ):
        pass


def test_a_model_of_an_object_store_is_a_temporary_copy_of_its_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {"s3://bucket/run/model.json": b"settings", "s3://bucket/run/model.safetensors": b"weights"}
    monkeypatch.setattr("twostream_ray.storage.read_bytes", lambda uri: stored[uri])
    with local_model("s3://bucket/run", config=TrackingConfig()) as directory:
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
            "model.json": b"settings",
            "model.safetensors": b"weights",
        }
    assert not directory.exists()
