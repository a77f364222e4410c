"""Admission control: resource requests that a cluster can never satisfy are refused; an autoscaler is waited for."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.private_cluster import private_folder

_LINE_EVERY_S = 15.0
_LOOK_EVERY_S = 0.5

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPUs and GPUs as numbers, memory in bytes."""


def require_room(wanted: Sequence[Resources], *, what: str, way_out: str, stop: threading.Event | None = None) -> None:
    """Return when all bundles, each on one node, fit into the cluster; setting `stop` ends a wait for nodes.

    Raises:
        ClusterError: they do not fit, and there is no autoscaler that could add nodes.
        KeyboardInterrupt: `stop` was set.
    """
    import ray

    if fits(wanted, _nodes(ray)):
        return
    if not _may_grow():
        raise ClusterError(f"{_shortage(ray, wanted, what=what)}: {way_out}")
    _wait(ray, wanted, what=what, stop=stop)


def fits(wanted: Sequence[Resources], nodes: Sequence[Resources]) -> bool:
    """Whether nodes of these sizes can hold all bundles at once; first-fit decreasing bin packing."""
    left = [dict(node) for node in nodes]
    for one in sorted(wanted, key=lambda one: sorted(one.values(), reverse=True), reverse=True):
        for node in left:
            if all(node.get(name, 0.0) >= amount - 1e-6 for name, amount in one.items()):
                for name, amount in one.items():
                    node[name] = node.get(name, 0.0) - amount
                break
        else:
            return False
    return True


def describe_resources(many: Sequence[Resources], *, free: bool = False) -> str:
    """Text such as "12 x (1 CPU, 1 GPU) and 1 x (0.1 CPU)"; `free` also names CPUs and GPUs that are 0."""
    names = ("CPU", "GPU", "memory")
    kinds = Counter(
        ", ".join(_amount(name, one.get(name, 0.0)) for name in names if one.get(name) or (free and name != "memory"))
        for one in many
    )
    return " and ".join(f"{count} x ({words})" for words, count in kinds.items()) or "no node"


def _shortage(ray: Any, wanted: Sequence[Resources], *, what: str) -> str:
    nodes = describe_resources(_nodes(ray), free=True)
    return f"{what} want {describe_resources(wanted)}, the Ray cluster has {nodes}"


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB of memory" if name == "memory" else f"{amount:g} {name}"


def _nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _may_grow() -> bool:
    from twostream_ray.runs.cluster.ray_private import has_autoscaler

    return private_folder() is None and has_autoscaler()


def _wait(ray: Any, wanted: Sequence[Resources], *, what: str, stop: threading.Event | None) -> None:
    """Wait for a placement group of the bundles, which an autoscaler sees, then remove it."""
    group = ray.util.placement_group([dict(one) for one in wanted], strategy="PACK")
    begun = last_line_at = time.monotonic()
    try:
        while not group.wait(_LOOK_EVERY_S):
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            now = time.monotonic()
            if last_line_at == begun or now - last_line_at >= _LINE_EVERY_S:
                last_line_at = now
                print(  # noqa: T201
                    f"{_shortage(ray, wanted, what=what)}: waiting for its autoscaler, {now - begun:.0f} s so far",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        ray.util.remove_placement_group(group)
