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
