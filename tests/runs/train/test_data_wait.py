import time
from collections.abc import Callable

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.train.data_wait import CpuUse, data_wait_remedy


def use(share: float, *, cpus: int = 8) -> CpuUse:
    measured = CpuUse(cpus=cpus)
    measured.share = share
    return measured


@pytest.mark.parametrize(
    ("settings", "cpu_share", "remedy"),
    [
        ({"decode_at": "worker"}, 0.97, "with their 8 CPUs 97% busy: give each more with workers.cpus_per_worker"),
        ({"decode_at": "device"}, 0.8, "with their 8 CPUs 80% busy: give each more with workers.cpus_per_worker"),
        ({"decode_at": "stream"}, 0.1, "the reading tasks also decode: raise data.read_tasks, or add CPU nodes"),
        ({"decode_at": "worker", "decode_processes": 2}, 0.25, "8 CPUs 25% busy: raise data.decode_processes (2)"),
        ({"decode_at": "worker"}, 0.2, "reading from s3://b/shards is slow: set data.cache, or raise data.read_tasks"),
        (
            {"decode_at": "worker", "cache": "/c"},
            0.2,
            "reading from s3://b/shards is slow: raise data.read_tasks, or move",
        ),
    ],
)
def test_the_remedy_of_waiting_follows_from_what_was_busy(
    settings: dict[str, object], cpu_share: float, remedy: str
) -> None:
    data = DataConfig(shards="s3://b/shards", **settings)
    sentence = data_wait_remedy(0.34, data, cpus=use(cpu_share))
    assert sentence is not None and remedy in sentence
    assert sentence.startswith("workers waited for data 34% of the time") and "\n" not in sentence


def test_who_waits_a_tenth_of_the_time_at_most_needs_no_remedy() -> None:
    assert data_wait_remedy(0.1, DataConfig(shards="s"), cpus=use(1.0)) is None


def test_a_process_that_computes_uses_a_cpu_and_one_that_sleeps_none() -> None:
    """In CPU seconds, as another process may have the CPU at any time."""
    measured = CpuUse(cpus=2)

    def used_during(act: Callable[[], object]) -> float:
        began = time.monotonic()
        measured.start()
        act()
        measured.stop()
        return measured.share * measured.cpus * (time.monotonic() - began)

    def compute() -> None:
        ends = time.process_time() + 0.3
        while time.process_time() < ends:
            pass

    assert used_during(compute) > 0.25
    assert used_during(lambda: time.sleep(0.3)) < 0.15
