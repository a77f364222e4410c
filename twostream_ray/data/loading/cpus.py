"""CPU count available to a worker: its share of the cluster's CPUs, at most those of its machine."""

from __future__ import annotations

import os

_RESERVED_PART = 0.5
"""Fraction of a worker's CPUs that it reserves with Ray by default; the rest is left to reading tasks."""


def cpus_of_this_machine() -> int:
    """CPUs that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus_of_this_process() -> int:
    """CPUs for decoding: the share of a Ray worker, or the whole machine for any other process.

    A worker without a reservation, such as a task of the benchmarks, gets 1.
    """
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return cpus_of_this_machine()
    return cpus_for_reservation(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))


def cpus_for_reservation(reserved: float) -> int:
    """CPUs of a worker that has reserved this many with Ray."""
    return max(1, min(cpus_of_this_machine(), round(reserved / _RESERVED_PART)))
