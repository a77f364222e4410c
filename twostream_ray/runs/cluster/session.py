"""Ray session of a run (ray.init): joins the cluster that RAY_ADDRESS names, or starts a private one for the run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.address import cluster_address, cluster_of_this_machine
from twostream_ray.runs.cluster.private_cluster import (
    environment,
    private_cluster,
    require_limits,
    short_folder,
)
from twostream_ray.runs.cluster.watchdog import note_stop

_log = logging.getLogger(__name__)

_CONNECT_S = 2.0
_DASHBOARD = "RAY_API_SERVER_ADDRESS"
_NOWHERE = "http://127.0.0.1:9"
"""An address that refuses connections at once."""


@contextmanager
def ray_session(*, dashboard: bool = False) -> Iterator[None]:
    """Connect to the cluster named by RAY_ADDRESS (set inside a submitted job), or start a private one for the block.

    An existing connection is used and left open. `dashboard` starts one with a private cluster. SIGTERM interrupts the
    block as Ctrl-C does.

    Raises:
        ClusterError: the cluster cannot be reached, or none can be started on this machine.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    address = cluster_address()
    if address is None and (other := cluster_of_this_machine()) is not None:
        _log.warning(
            "note: RAY_ADDRESS=%s would join the Ray cluster of this machine; without it a private one starts",
            other,
        )
    port = _free_port() if dashboard and address is None else None
    cluster = private_cluster(_private_settings(port), dashboard_port=port) if address is None else _joined(address)
    # Progress bars replace Ray Data's log.
    with _sigterm_kept(), cluster, environment({"RAY_DATA_LOG_LEVEL": "CRITICAL"}):
        # Importing it sets the log level that is changed next.
        import ray.data  # noqa: F401

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield


def require_cluster() -> None:
    """Raise what `ray_session` would raise, before anything slow starts.

    Raises:
        ClusterError: the cluster cannot be reached, or none can be started on this machine.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    if cluster_address() is None:
        require_limits()
        short_folder()


def lacks_dashboard() -> bool:
    """Whether this process uses a private cluster without a dashboard, which Ray's state API would need."""
    return os.environ.get(_DASHBOARD) == _NOWHERE


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the SIGTERM handler after the block, as Ray replaces it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """A connection to a shared cluster."""
    import ray

    from twostream_ray.runs.cluster.ray_private import connect_once, read_environment_again

    with environment(_cluster_settings() | _loopback_settings(address)):
        read_environment_again()
        try:
            if address != "auto":
                connect_once(address)
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, RuntimeError, ray.exceptions.RpcError, ray.exceptions.AuthenticationError) as error:
            if isinstance(error, ray.exceptions.AuthenticationError) or "Unauthenticated" in str(error):
                raise ClusterError(
                    f"the Ray cluster {address} requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or "
                    "RAY_AUTH_TOKEN) to the cluster's own"
                ) from error
            raise ClusterError(
                f"a Ray cluster was wanted at RAY_ADDRESS={address}, but it cannot be joined "
                f"({' '.join(str(error).split())[:300]}): start one with this version of Ray and Python, name its "
                "HOST:PORT, or unset RAY_ADDRESS to run on this machine alone"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _loopback_settings(address: str) -> dict[str, str]:
    """Settings to join a cluster that listens on loopback only, which Ray would poll for at this machine's address."""
    from twostream_ray.runs.cluster.ray_private import node_address

    host, _, port = address.rpartition(":")
    if host not in ("localhost", "127.0.0.1", "[::1]", "::1"):
        return {}
    try:
        socket.create_connection((node_address(), int(port)), timeout=_CONNECT_S).close()
    except OSError:
        return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return {}


def _cluster_settings() -> dict[str, str]:
    """Environment variables for Ray on a shared cluster."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray Train's default is 2 s, and it waits as long again before it replaces lost workers.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # The mailbox of a training polls Ray for draining nodes itself.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    return _unless_set(settings)


def _private_settings(dashboard_port: int | None) -> dict[str, str]:
    """Environment variables for Ray on a private cluster."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # All of a run's processes may start at once, of which Ray would warn line by line.
        "RAY_worker_maximum_startup_concurrency": "8",
        # Keep idle processes: re-importing costs each pass over the data seconds.
        "RAY_num_workers_soft_limit": "16",
        "RAY_idle_worker_killing_time_threshold_ms": "600000",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # A private cluster's only node is never drained.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    # A private cluster has no dashboard (a dozen processes) unless one is wanted. If there is one, Ray Train's clean-up
    # actor must use this one: otherwise it asks the machine's newest cluster, does not find its training there, and
    # releases that training's resources.
    api = _NOWHERE if dashboard_port is None else f"http://127.0.0.1:{dashboard_port}"
    # Workers connect on loopback, as all of Ray does here, whatever the shell sets for clusters.
    interfaces = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return _unless_set(settings) | interfaces | {_DASHBOARD: api}


def _unless_set(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings, or the environment's values where they are set."""
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def _free_port() -> int:
    """A free port of this machine outside 10002 to 19999, which Ray assigns to its processes."""
    while True:
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            port = int(asked.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


@contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that the first SIGTERM (a spot instance's notice, a stopped job) sets; the second one interrupts.

    Use it inside `ray_session`, which replaces the handler, and in the main thread.
    """
    event = threading.Event()

    def request_stop(_signal: int, _frame: object) -> None:
        note_stop()
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGTERM, request_stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def polled(poll: Callable[[], object], *, every_seconds: float) -> Iterator[None]:
    """Call `poll` repeatedly from a thread while the block runs, and once more when it ends without an error.

    Polling stops after an error of Ray, which fails the block too, and after any other error of `poll`.

    Raises:
        Exception: what `poll` raised, after the block: BrokenPipeError if the output's reader (head, less) closed it.
    """
    from ray.exceptions import RayError

    ended = threading.Event()
    errors: list[Exception] = []

    def repeat() -> None:
        try:
            with suppress(RayError):
                while not ended.wait(every_seconds):
                    poll()
        except Exception as error:  # noqa: BLE001  (raised below, where somebody sees it)
            errors.append(error)

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
    if errors:
        raise errors[0]
    poll()
