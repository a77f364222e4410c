import os

import pytest

from twostream_ray.data.loading import cpus


def test_a_process_outside_ray_has_the_machine() -> None:
    assert cpus.cpus_of_this_machine() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("reserved", "machine", "expected"), [(8, 16, 16), (1, 2, 2), (0.5, 2, 1), (0.0, 8, 1), (8, 4, 4)]
)
def test_a_worker_has_twice_what_it_reserves_and_no_more_than_there_is(
    monkeypatch: pytest.MonkeyPatch, reserved: float, machine: int, expected: int
) -> None:
    monkeypatch.setattr(cpus, "cpus_of_this_machine", lambda: machine)
    assert cpus.cpus_for_reservation(reserved) == expected


def test_a_task_is_told_its_share_by_ray(cluster: None) -> None:
    import ray

    ask = ray.remote(cpus.cpus_of_this_process)
    whole = cpus.cpus_of_this_machine()
    assert ray.get(ask.options(num_cpus=0).remote()) == 1
    assert ray.get(ask.options(num_cpus=1).remote()) == min(2, whole)
    assert cpus.cpus_of_this_process() == whole, "the driver has the machine"
