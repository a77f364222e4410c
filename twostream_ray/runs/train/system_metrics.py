"""How busy the machines of a training are, as metrics under the names by which MLflow's page shows them.

MLflow's own monitor (`mlflow.enable_system_metrics_logging`) watches only its process's machine, counts its own steps,
needs two packages more, and ends for good when the server is away once.
"""

from __future__ import annotations

import importlib
import threading
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import ray

_EVERY_S = 2.0
_PREFIX = "system/"
_MEGABYTE = 1e6


class SystemMetrics:
    """Looks at this worker's machine and GPU every 2 s, in a thread that ends with the process."""

    def __init__(self) -> None:
        self._psutil = importlib.import_module("psutil")  # comes inside Ray's package, where `import ray` finds it
        self._gpus = _own_gpus()
        self._lock = threading.Lock()
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._look()  # the first figure of CPU time counts from here
        self._seen.clear()
        threading.Thread(target=self._watch, name="gauges", daemon=True).start()

    def read(self) -> dict[str, float]:
        """Means since the last reading, in % and MB (10^6 bytes); GPU figures only where this worker has a GPU."""
        self._look()
        with self._lock:
            means = {f"{_PREFIX}{name}": fmean(values) for name, values in self._seen.items()}
            self._seen.clear()
        return means

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        memory = self._psutil.virtual_memory()
        figures = {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_percentage": memory.percent,
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        }
        if self._gpus is not None:
            figures |= self._gpus()
        with self._lock:
            for name, value in figures.items():
                self._seen[name].append(float(value))


def mean_of_workers(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of what all workers' gauges say, where they say anything."""
    seen = defaultdict(list)
    for report in reports:
        for name, value in report.items():
            if name.startswith(_PREFIX):
                seen[name].append(value)
    return {name: fmean(values) for name, values in seen.items()}


def object_store() -> dict[str, float]:
    """What the cluster's object stores hold now, in MB (10^6 bytes) and in % of their size."""
    total = ray.cluster_resources().get("object_store_memory", 0.0)
    if not total:
        return {}
    used = total - ray.available_resources().get("object_store_memory", 0.0)
    return {
        f"{_PREFIX}object_store_usage_megabytes": used / _MEGABYTE,
        f"{_PREFIX}object_store_usage_percentage": 100 * used / total,
    }


def _own_gpus() -> Any:
    """A function that gives the mean use of this worker's GPUs now; None without any or if NVML fails."""
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", []) if ray.is_initialized() else []
    if not ids:
        return None
    try:
        # NVIDIA's bindings as Ray carries them, with which it counts the GPUs itself.
        nvml = importlib.import_module("ray._private.thirdparty.pynvml")
        nvml.nvmlInit()
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in map(str, ids)
        ]
    except Exception:  # noqa: BLE001  (no figures are no reason to stop a training)
        return None

    def look() -> dict[str, float]:
        try:
            rates = [nvml.nvmlDeviceGetUtilizationRates(handle) for handle in handles]
            memory = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        except nvml.NVMLError:
            return {}
        return {
            "gpu_utilization_percentage": fmean(rate.gpu for rate in rates),
            "gpu_memory_usage_percentage": fmean(100 * each.used / each.total for each in memory),
            "gpu_memory_usage_megabytes": fmean(each.used / _MEGABYTE for each in memory),
        }

    return look
