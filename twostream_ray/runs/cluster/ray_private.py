"""Ray's private interfaces that clusters take, all that this package uses; imported only when Ray is.

Each is named in tests/runs/cluster/test_ray_private.py, so that a change of Ray is found there first. Those of Ray
Train and Ray Tune are in `runs.train.ray_private`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants, services, state, worker
from ray._private.utils import estimate_available_memory, resolve_object_store_memory
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]

_NO_AUTOSCALER = "node_"
"""Begins the types of nodes that no autoscaler has made."""


def read_environment_again() -> None:
    """Let Ray forget what it has read of addresses and credentials in the environment before.

    Without that a process keeps the first token that it has read, and cannot join or start a second cluster.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR) != "0"


def connect_once(address: str) -> None:
    """Ask a cluster's control service at HOST:PORT once; `ray.init` would ask for minutes, also with a wrong token.

    Raises:
        ConnectionError, RuntimeError, ray.exceptions.RpcError, ray.exceptions.AuthenticationError: it is not one.
    """
    GcsClient(address=services.canonicalize_bootstrap_address(address))


def node_address() -> str:
    """The address by which Ray looks for a node on this machine."""
    return str(services.get_node_ip_address())


def own_node() -> Any:
    """The node that this process has started, or None; without it the folder of a private cluster is not known."""
    return worker._global_node


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that will be taken away (a spot instance's notice, a drain).

    Without that a checkpoint is saved only by schedule before a node is lost.
    """
    return frozenset(state.state.get_draining_nodes())


def has_autoscaler() -> bool:
    """Whether an autoscaler is there: it gives nodes the names of their types.

    Without that a run that is larger than the cluster would be refused where nodes could be added.
    """
    # Here, for the mailbox imports this module too, and is to start fast.
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

    status = json.loads(_internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or "{}")
    kinds = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    if any(not kind.startswith(_NO_AUTOSCALER) for kind in kinds):
        return True
    # The second generation of autoscalers leaves no such report.
    states = get_cluster_resource_state(internal_kv_get_gcs_client()).node_states
    return any(one.ray_node_type_name for one in states)


def object_store_bytes() -> int:
    """Bytes that the object store of a cluster started here takes, by Ray's own rule."""
    return int(resolve_object_store_memory(estimate_available_memory()))


@contextmanager
def processes_in_own_sessions() -> Iterator[None]:
    """Ray's processes that start within the block get sessions of their own.

    Without that Ctrl-C in a terminal ends them before a run has saved its checkpoint.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def filter_worker_lines(wanted: Callable[[list[str]], bool]) -> None:
    """Print the lines that Ray sends to the driver only where `wanted` says so; for the rest of this process.

    Without that a page of Ray's log is printed whenever a run's cluster ends.
    """
    printed = worker.print_to_stdstream
    if isinstance(printed, functools.partial):
        return  # done before

    def print_wanted(original: Callable[..., None], data: dict[str, Any], *rest: Any, **more: Any) -> None:
        if wanted(data["lines"]):
            original(data, *rest, **more)

    worker.print_to_stdstream = functools.partial(print_wanted, printed)
