"""Input pipeline bottleneck: why workers waited for data, and the setting that would reduce it."""

from __future__ import annotations

import time

import psutil

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig

_TOLERATED_WAIT_SHARE = 0.1
_BUSY_CPU_SHARE = 0.75


class CpuUse:
    """CPU utilisation of a worker and its child processes during a pass, as a share of the worker's CPUs."""

    def __init__(self, *, cpus: int) -> None:
        self.cpus = cpus
        """CPUs available to the worker."""
        self.share = 0.0
        """Of the last pass; above 1 where it used more CPUs than its own."""
        self._begin = (0.0, 0.0)

    def start(self) -> None:
        """Start measuring a pass."""
        self._begin = (time.monotonic(), cpu_seconds())

    def stop(self) -> None:
        """End the measurement and set `share`."""
        began, used = self._begin
        self.share = max(0.0, cpu_seconds() - used) / max(time.monotonic() - began, 1e-9) / self.cpus


def data_wait_remedy(share: float, data: DataConfig, *, cpus: CpuUse) -> str | None:
    """The setting to change when workers wait for data, in one sentence; None up to 10 % of the time.

    Args:
        share: share of an epoch's time spent waiting, in [0, 1].
        data: settings with `decode_at` as the worker resolved it, not `auto`.
        cpus: the worker's CPUs during that epoch.
    """
    if share <= _TOLERATED_WAIT_SHARE:
        return None
    waited = f"workers waited for data {share:.0%} of the time"
    if data.decode_at == "stream":
        return f"{waited}, and the reading tasks also decode: raise data.read_tasks, or add CPU nodes"
    if cpus.share >= _BUSY_CPU_SHARE:
        more = "give each more with workers.cpus_per_worker, or have CPU nodes decode with data.decode_at stream"
        return f"{waited} with their {cpus.cpus} CPUs {min(cpus.share, 1.0):.0%} busy: {more}"
    idle = f"{waited} with their {cpus.cpus} CPUs {cpus.share:.0%} busy"
    processes = data.decode_processes
    if processes is not None and processes < cpus.cpus:
        return f"{idle}: raise data.decode_processes ({processes})"
    if storage.is_s3(data.shards) and data.cache is None:
        return f"{idle}, so reading from {data.shards} is slow: set data.cache, or raise data.read_tasks"
    return f"{idle}, so reading from {data.shards} is slow: raise data.read_tasks, or move the shards to a faster store"


def cpu_seconds() -> float:
    """CPU time in seconds of this process, of its running descendants, and of children it has waited for."""
    own = psutil.Process()
    times = own.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in own.children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        total += spent.user + spent.system
    return float(total)
