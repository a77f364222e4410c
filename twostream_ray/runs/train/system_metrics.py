"""System metrics of a training's machines (CPU, memory, GPU, object store), under the names that MLflow's page shows.

MLflow's own monitor (`mlflow.enable_system_metrics_logging`) watches only its process's machine, counts its own steps,
and stops for good the first time that the server is unreachable.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import psutil
import pynvml
import ray

_EVERY_S = 2.0
_PREFIX = "system/"
_MEGABYTE = 1e6


class SystemMetrics:
    """Samples use of this worker's machine and GPU every 2 s, in a daemon thread."""

    def __init__(self) -> None:
        self._gpus = _own_gpus()
        self._lock = threading.Lock()
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._sample()  # CPU time counts from here
        self._samples.clear()
        threading.Thread(target=self._sample_regularly, name="system metrics", daemon=True).start()

    def read(self) -> dict[str, float]:
        """Means since the last call, in % and MB (10^6 bytes); GPU metrics only where this worker has a GPU."""
        self._sample()
        with self._lock:
            means = {f"{_PREFIX}{name}": fmean(values) for name, values in self._samples.items()}
            self._samples.clear()
        return means

    def _sample_regularly(self) -> None:
        pause = threading.Event()
        while not pause.wait(_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": memory.percent,
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        }
        if self._gpus is not None:
            values |= self._gpus()
        with self._lock:
            for name, value in values.items():
                self._samples[name].append(float(value))


def mean_of_workers(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean over workers of each system metric, of those that report it."""
    samples = defaultdict(list)
    for report in reports:
        for name, value in report.items():
            if name.startswith(_PREFIX):
                samples[name].append(value)
    return {name: fmean(values) for name, values in samples.items()}


def object_store() -> dict[str, float]:
    """Use of the cluster's object stores now, in MB (10^6 bytes) and in % of their size."""
    total = ray.cluster_resources().get("object_store_memory", 0.0)
    if not total:
        return {}
    used = total - ray.available_resources().get("object_store_memory", 0.0)
    return {
        f"{_PREFIX}object_store_usage_megabytes": used / _MEGABYTE,
        f"{_PREFIX}object_store_usage_percentage": 100 * used / total,
    }


def _own_gpus() -> Any:
    """A function that returns the mean use of this worker's GPUs now; None without any or if NVML fails."""
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", []) if ray.is_initialized() else []
    if not ids:
        return None
    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in map(str, ids)
        ]
    except Exception:  # noqa: BLE001  (no metrics are no reason to stop a training)
        return None

    def sample() -> dict[str, float]:
        try:
            rates = [pynvml.nvmlDeviceGetUtilizationRates(handle) for handle in handles]
            memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        except pynvml.NVMLError:
            return {}
        return {
            "gpu_utilization_percentage": fmean(rate.gpu for rate in rates),
            "gpu_memory_usage_percentage": fmean(100 * each.used / each.total for each in memory),
            "gpu_memory_usage_megabytes": fmean(each.used / _MEGABYTE for each in memory),
        }

    return sample
