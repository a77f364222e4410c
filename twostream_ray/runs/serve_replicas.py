"""Ray Serve deployment of the service: several replicas of its application behind Ray's HTTP proxies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from twostream_ray.errors import ClusterError, ConfigError
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.serve import listening_socket, require_extra
from twostream_ray.serving.settings import ServeConfig
from twostream_ray.settings.parser import from_mapping

NAME = "two-stream"
"""Name of the Serve application and its only deployment."""
_OTHER_REQUESTS = 64
"""Concurrent requests of a replica besides predictions: pages, samples, health, bodies being received."""
_RETRY_S = 5
"""Retry-After of responses with which Ray's proxy refuses requests."""
_STARTS = 3
"""How often a replica that fails before it is ready is started."""


def build_application(args: dict[str, Any]) -> Any:
    """Application builder for the `import_path` of a Serve config, with settings of `twostream serve` as its `args`.

    Raises:
        ConfigError: a setting is unknown or out of bounds.
    """
    return bound_deployment(from_mapping(ServeConfig, args))


def bound_deployment(config: ServeConfig) -> Any:
    """The deployment: `replicas.number` processes, each with the application and a model of its own."""
    from ray import serve

    on_replica = replica_config(config)

    def build() -> Any:
        # Called on the replica: Serve calls functions as factories, and runs the application's lifespan.
        from twostream_ray.serving.application import Service, create_application

        service = Service(on_replica)
        if not on_replica.wait:
            # Before Serve sends it requests.
            service.current.load()
        return create_application(on_replica, service=service)

    options = deployment_options(config)
    return serve.deployment(serve.ingress(build)(), **options).bind()


def replica_config(config: ServeConfig) -> ServeConfig:
    """Settings of one replica; by default as many decoders as it has CPUs."""
    decoders = max(1, int(config.replicas.cpus)) if config.decoders is None else config.decoders
    return replace(config, decoders=decoders)


def deployment_options(config: ServeConfig) -> dict[str, Any]:
    """Options of the Serve deployment.

    A replica itself refuses requests for which its queue has no room, with the reason as JSON. So requests are sent to
    a replica at once: for one that waits in a proxy, the body is read into the proxy's memory, whatever its size.
    """
    limits, replicas = config.limits, config.replicas
    ongoing = limits.queue + limits.receiving + _OTHER_REQUESTS
    return {
        "name": NAME,
        "num_replicas": replicas.number,
        "max_ongoing_requests": ongoing,
        "max_queued_requests": limits.queue,
        "backpressure_config": {"status_code": 429, "retry_after_s": _RETRY_S},
        "graceful_shutdown_timeout_s": config.shutdown_seconds,
        "max_constructor_retry_count": _STARTS,
        "ray_actor_options": {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


def serve_replicas(config: ServeConfig, *, announce: Callable[[str], object] = lambda _: None) -> int:
    """Serve with replicas until a signal, then finish running requests; returns 0.

    Args:
        config: model, address, limits and replicas.
        announce: called with a line once requests are accepted.

    Raises:
        ConfigError: the extra `serve` is not installed, or the port is 0.
        ClusterError: as `served_by_replicas`.
    """
    require_extra()
    if config.port == 0:
        raise ConfigError("port must be at least 1 with replicas, got 0: every node's proxy listens at it")
    with served_by_replicas(config) as url:
        announce(f"{config.replicas.number} replicas with {config.model} answer at {url}; Ctrl-C ends them")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


@contextmanager
def served_by_replicas(config: ServeConfig) -> Iterator[str]:
    """Run replicas on the cluster that RAY_ADDRESS names, or on a private one, while the block runs; yields the URL.

    On a shared cluster Serve itself keeps running after the block, for other applications.

    Raises:
        ClusterError: the cluster cannot be reached or has no room, the port is taken, or no replica started.
    """
    with ray_session():
        from ray import serve

        from twostream_ray.runs.cluster.private_cluster import private_folder

        is_private = private_folder() is not None
        if is_private:
            # Ray would restart its proxy forever if another process listens at the port.
            listening_socket(config.host, config.port).close()
        require_room(
            [_resources(config)] * config.replicas.number,
            what="replicas of the service",
            way_out="lower replicas.number, replicas.cpus or replicas.gpus",
        )
        serve.start(
            proxy_location="HeadOnly" if is_private else "EveryNode",
            http_options={"host": config.host, "port": config.port},
        )
        try:
            _run(serve, config)
            yield f"http://{config.host}:{config.port}"
        finally:
            if is_private:
                serve.shutdown()
            else:
                serve.delete(NAME)


def _run(serve: Any, config: ServeConfig) -> None:
    try:
        serve.run(bound_deployment(config), name=NAME, route_prefix="/")
    except RuntimeError as error:
        status = serve.status().applications.get(NAME)
        said = " ".join(str(status.message if status else error).split())
        raise ClusterError(
            f"{config.replicas.number} replicas were wanted, but they did not start: {said[-600:]}"
        ) from error


def _resources(config: ServeConfig) -> Mapping[str, float]:
    wanted = {"CPU": config.replicas.cpus, "GPU": config.replicas.gpus}
    return {name: amount for name, amount in wanted.items() if amount}
