"""What this package uses of Ray itself without being promised it; each is there in the installed Ray."""

import functools
import inspect
import subprocess

import pytest
from ray._private import ray_constants, services, state, worker
from ray._private.node import Node
from ray._private.utils import estimate_available_memory, resolve_object_store_memory
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.experimental import internal_kv

from twostream_ray.runs.cluster import ray_private


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_credentials_can_be_read_again() -> None:
    assert callable(Config.initialize) and callable(AuthenticationTokenLoader.instance)
    assert hasattr(AuthenticationTokenLoader, "reset_cache")
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, str) and hasattr(ray_constants, "ENABLE_RAY_CLUSTER")


def test_a_control_service_can_be_asked_once() -> None:
    assert callable(GcsClient) and "addr" in parameters(services.canonicalize_bootstrap_address)
    assert ray_private.node_address().count(".") == 3


def test_nodes_and_autoscalers_are_known() -> None:
    assert parameters(state.GlobalState.get_draining_nodes) == ["self"]
    assert isinstance(ray_constants.DEBUG_AUTOSCALING_STATUS, str)
    assert callable(internal_kv._internal_kv_get) and callable(internal_kv.internal_kv_get_gcs_client)
    assert len(parameters(get_cluster_resource_state)) == 1
    assert "_global_node" in vars(worker)


def test_the_object_store_has_the_size_that_ray_gives_it() -> None:
    assert len(parameters(resolve_object_store_memory)) >= 1 and parameters(estimate_available_memory) == []
    assert ray_private.object_store_bytes() > 2**20


def test_rays_processes_start_in_sessions_of_their_own_within_the_block_alone() -> None:
    before = services.ConsolePopen
    assert issubclass(before, subprocess.Popen)
    with ray_private.processes_in_own_sessions():
        assert isinstance(services.ConsolePopen, functools.partial)
        assert services.ConsolePopen.keywords == {"start_new_session": True}
    assert services.ConsolePopen is before


@pytest.mark.parametrize(
    ("dashboard", "left_out"), [(True, {"monitor", "log_monitor"}), (False, {"monitor", "log_monitor", "api_server"})]
)
def test_processes_that_a_private_cluster_has_no_use_for_do_not_start_within_the_block(
    dashboard: bool, left_out: set[str]
) -> None:
    started = {"gcs_server", "monitor", "log_monitor", "api_server"}
    before = {name: getattr(Node, f"start_{name}") for name in started}
    source = inspect.getsource(Node)
    assert all(f"self.start_{name}(" in source for name in started)
    with ray_private.fewer_processes(dashboard=dashboard):
        assert {name for name in started if getattr(Node, f"start_{name}") is not before[name]} == left_out
    assert {name: getattr(Node, f"start_{name}") for name in started} == before


def test_a_private_cluster_has_no_process_beyond_what_it_needs(cluster: None) -> None:
    processes = ray_private.own_node().all_processes
    assert {"gcs_server", "raylet"} <= processes.keys()
    useless = {f"PROCESS_TYPE_{name}" for name in ("MONITOR", "LOG_MONITOR", "DASHBOARD")}
    assert not {getattr(ray_constants, name) for name in useless} & processes.keys()


def test_lines_of_workers_are_printed_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameters(worker.print_to_stdstream)[0] == "data"
    printed = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: printed.append(data["lines"]))
    ray_private.filter_worker_lines(lambda lines: lines != ["unwanted"])
    ray_private.filter_worker_lines(lambda lines: False)  # the first filter holds for the rest of the process
    for line in ("wanted", "unwanted"):
        worker.print_to_stdstream({"lines": [line]}, False)
    assert printed == [["wanted"]]
