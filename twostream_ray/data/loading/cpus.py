"""The CPUs that a worker may use: its share of the cluster's, and no more than its machine has."""

from __future__ import annotations

import os

_RESERVED_PART = 0.5
"""Of the CPUs that are a worker's; it reserves half of them by default, to leave room for the tasks that read."""


def cpus_of_this_machine() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus_of_this_process() -> int:
    """CPUs to decode with: a Ray worker's share, the whole machine for any other process.

    A worker that reserves nothing, as the tasks of the benchmarks do, has one.
    """
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return cpus_of_this_machine()
    return share_of(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))


def share_of(reserved: float) -> int:
    """CPUs that are a worker's which reserves so many."""
    return max(1, min(cpus_of_this_machine(), round(reserved / _RESERVED_PART)))
