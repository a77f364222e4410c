import os
import time

import numpy as np
import ray

from twostream_ray.runs.train.system_metrics import SystemMetrics, mean_of_workers, object_store


def test_a_busy_machine_shows_in_the_means_since_the_last_reading() -> None:
    metrics = SystemMetrics()
    ends = time.process_time() + 0.5
    while time.process_time() < ends:
        pass
    read = metrics.read()
    assert read.keys() == {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_percentage",
        "system/system_memory_usage_megabytes",
    }
    busy = 100 / (os.cpu_count() or 1)  # one core of all that the mean is over
    assert busy / 4 < read["system/cpu_utilization_percentage"] <= 100
    assert 0 < read["system/system_memory_usage_percentage"] < 100
    assert read["system/system_memory_usage_megabytes"] > 100
    assert metrics.read().keys() == read.keys(), "also when nothing was seen in between"


def test_the_mean_is_taken_over_those_workers_that_have_a_figure() -> None:
    reports = [{"loss": 1.0, "system/a": 10.0, "system/gpu": 80.0}, {"loss": 1.0, "system/a": 20.0}]
    assert mean_of_workers(reports) == {"system/a": 15.0, "system/gpu": 80.0}


def test_what_lies_in_the_object_store_is_counted(cluster: None) -> None:
    before = object_store()
    kept = ray.put(np.zeros(60_000_000, np.uint8))
    deadline = time.monotonic() + 20
    while (grown := object_store())["system/object_store_usage_megabytes"] < (
        before["system/object_store_usage_megabytes"] + 55
    ):
        assert time.monotonic() < deadline, (before, grown)
        time.sleep(0.2)
    assert 0 < grown["system/object_store_usage_percentage"] < 100
    del kept
