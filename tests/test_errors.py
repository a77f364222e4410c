import errno
from pathlib import Path

import pytest
import ray

from twostream_ray.errors import DecodeError, StorageError, own_error


def test_a_full_disk_met_by_a_task_becomes_an_error_that_names_the_way_out(cluster: None) -> None:
    def fill() -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(OSError) as met:
        ray.get(ray.remote(fill).options(num_cpus=0).remote())
    own = own_error(met.value)
    assert isinstance(own, StorageError)
    assert "No space left on device" in str(own) and "TMPDIR" in str(own)


def test_our_own_error_is_found_inside_a_tasks_and_others_are_not(cluster: None) -> None:
    def fail(error: Exception) -> None:
        raise error

    def met(error: Exception) -> BaseException:
        with pytest.raises(type(error)) as caught:
            ray.get(ray.remote(fail).options(num_cpus=0).remote(error))
        return caught.value

    assert str(own_error(met(DecodeError("clip.mp4: cut")))) == "clip.mp4: cut"
    assert own_error(met(ZeroDivisionError())) is None
    assert own_error(met(PermissionError(13, "Permission denied"))) is None


def test_full_disks_are_reported_though_ray_data_wraps_and_annotates_the_errors_of_its_tasks(cluster: None) -> None:
    def fail(row: dict[str, str]) -> dict[str, str]:
        if row["item"] == "full":
            Path("/dev/full").write_bytes(b"x")
        if row["item"] == "read-only":
            raise OSError(errno.EROFS, "Read-only file system", "/mnt/x")
        raise StorageError("cannot write s3://none/x: it does not exist; check the path") from ValueError(
            "of the store"
        )

    def met(kind: str) -> str:
        context = ray.data.DataContext.get_current()
        before, context.raise_original_map_exception = context.raise_original_map_exception, True
        try:
            list(ray.data.from_items([kind]).map(fail, num_cpus=0).iter_rows())
        except ray.exceptions.RayError as error:
            return str(own_error(error))
        finally:
            context.raise_original_map_exception = before
        pytest.fail("nothing was raised")

    assert met("missing") == "cannot write s3://none/x: it does not exist; check the path"
    assert "a disk is full or its quota used up (No space left on device: temporary files)" in met("full")
    assert "a disk cannot be written (Read-only file system: temporary files): let TMPDIR" in met("read-only")


def test_a_machine_without_room_for_temporary_files_is_named() -> None:
    nowhere = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/x']")
    assert str(own_error(nowhere)) == "no directory for temporary files can be written: let TMPDIR name one that can"
    assert own_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
