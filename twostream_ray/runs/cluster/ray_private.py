"""Private interfaces of Ray Core that this package uses; imported only together with Ray.

tests/runs/cluster/test_ray_private.py names each, so that a change in Ray is found there first. Those of Ray Train and
Ray Tune are in `runs.train.ray_private`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants, services, state, worker
from ray._private.node import Node
from ray._private.utils import estimate_available_memory, resolve_object_store_memory
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]

_NO_AUTOSCALER = "node_"
"""Prefix of the types of nodes that no autoscaler started."""


def read_environment_again() -> None:
    """Make Ray read addresses and credentials from the environment again.

    Otherwise a process keeps the first token that it has read, and cannot join or start a second cluster.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR) != "0"


def connect_once(address: str) -> None:
    """Connect to a cluster's GCS at HOST:PORT once; `ray.init` would retry for minutes, even with a wrong token.

    Raises:
        ConnectionError, RuntimeError, ray.exceptions.RpcError, ray.exceptions.AuthenticationError: it fails.
    """
    GcsClient(address=services.canonicalize_bootstrap_address(address))


def node_address() -> str:
    """The address under which Ray looks for a node on this machine."""
    return str(services.get_node_ip_address())


def own_node() -> Any:
    """The node that this process has started, or None; it has the folder of a private cluster."""
    return worker._global_node


def draining_nodes() -> frozenset[str]:
    """Ids of draining nodes (a spot instance's notice, a drain), before whose loss a checkpoint is to be saved."""
    return frozenset(state.state.get_draining_nodes())


def has_autoscaler() -> bool:
    """Whether the cluster has an autoscaler, by its node types: then a run may wait for further nodes."""
    # Imported late, as the mailbox imports this module too and has to start fast.
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

    status = json.loads(_internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or "{}")
    kinds = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    if any(not kind.startswith(_NO_AUTOSCALER) for kind in kinds):
        return True
    # Autoscaler v2 writes no such report.
    states = get_cluster_resource_state(internal_kv_get_gcs_client()).node_states
    return any(one.ray_node_type_name for one in states)


def object_store_bytes() -> int:
    """Bytes of the object store of a cluster started on this machine, by Ray's own rule."""
    return int(resolve_object_store_memory(estimate_available_memory()))


@contextmanager
def processes_in_own_sessions() -> Iterator[None]:
    """Start Ray's processes in sessions of their own while the block runs.

    Otherwise Ctrl-C in a terminal ends them before a run has saved its checkpoint.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


@contextmanager
def fewer_processes(*, dashboard: bool) -> Iterator[None]:
    """Ray's head starts within the block without autoscaler and log monitor, and without a dashboard unless wanted.

    By default Ray starts all three processes, although no driver prints those logs, and waits for the dashboard's,
    which then only reports usage.
    """
    names = ["start_monitor", "start_log_monitor", *([] if dashboard else ["start_api_server"])]
    before = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(Node, name, original)


def filter_worker_lines(wanted: Callable[[list[str]], bool]) -> None:
    """Print lines that Ray sends to the driver only if `wanted` returns True, for the rest of this process.

    Otherwise a page of Ray's log is printed whenever a run's cluster ends.
    """
    printed = worker.print_to_stdstream
    if isinstance(printed, functools.partial):
        return  # done before

    def print_wanted(original: Callable[..., None], data: dict[str, Any], *rest: Any, **more: Any) -> None:
        if wanted(data["lines"]):
            original(data, *rest, **more)

    worker.print_to_stdstream = functools.partial(print_wanted, printed)
