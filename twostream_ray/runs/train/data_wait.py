"""Data wait of a training: which bottleneck the input pipeline has, and the setting that removes it."""

from __future__ import annotations

import time

import psutil

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig

_TOLERABLE = 0.1
_BUSY = 0.75


class CpuUse:
    """Share of its CPUs that a worker and its child processes use during a pass."""

    def __init__(self, *, cpus: int) -> None:
        self.cpus = cpus
        """CPUs that are the worker's."""
        self.share = 0.0
        """Of the last pass; above 1 where it takes more than are its own."""
        self._begin = (0.0, 0.0)

    def start(self) -> None:
        """A pass begins."""
        self._begin = (time.monotonic(), _cpu_seconds())

    def stop(self) -> None:
        """A pass has ended."""
        began, used = self._begin
        self.share = max(0.0, _cpu_seconds() - used) / max(time.monotonic() - began, 1e-9) / self.cpus


def data_wait_remedy(share: float, data: DataConfig, *, cpus: CpuUse) -> str | None:
    """What to change where a worker waited for data, in one sentence; None where it waited little.

    Args:
        share: share of an epoch's time that was spent waiting, in [0, 1].
        data: settings with `decode_at` as the worker has it, not `auto`.
        cpus: the worker's CPUs during that epoch.
    """
    if share <= _TOLERABLE:
        return None
    waited = f"workers waited for data {share:.0%} of the time"
    if data.decode_at == "stream":
        return f"{waited}, and the tasks that read decode: raise data.read_tasks, or add CPU nodes"
    if cpus.share >= _BUSY:
        more = "give each more with workers.cpus_per_worker, or have CPU nodes decode with data.decode_at stream"
        return f"{waited} with their {cpus.cpus} CPUs {min(cpus.share, 1.0):.0%} busy: {more}"
    idle = f"{waited} with their {cpus.cpus} CPUs {cpus.share:.0%} busy"
    processes = data.decode_processes
    if processes is not None and processes < cpus.cpus:
        return f"{idle}: raise data.decode_processes ({processes})"
    if storage.is_s3(data.shards) and data.cache is None:
        return f"{idle}, so bytes come slowly from {data.shards}: set data.cache, or raise data.read_tasks"
    return (
        f"{idle}, so bytes come slowly from {data.shards}: raise data.read_tasks, or move the shards to a faster store"
    )


def _cpu_seconds() -> float:
    """CPU time of this process, its children that live, and those that it has waited for."""
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
