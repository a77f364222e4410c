"""Ray Serve deployment of the service: its application in several replicas, behind Ray's HTTP proxies."""

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
"""Of the Serve application and its one deployment."""
_OTHER_REQUESTS = 64
"""Requests beside those for predictions that a replica takes at a time: pages, samples, health, bodies on their way."""
_RETRY_S = 5
"""Of Retry-After where Ray's proxy refuses."""
_STARTS = 3
"""How often a replica is started that fails before it is ready."""


def build_application(args: dict[str, Any]) -> Any:
    """Serve's application builder, the `import_path` of a Serve config: settings of `twostream serve` as its `args`.

    Raises:
        ConfigError: there is no such setting, or a value is out of its bounds.
    """
    return bound_deployment(from_mapping(ServeConfig, args))


def bound_deployment(config: ServeConfig) -> Any:
    """The deployment: `replicas.number` processes, each with the whole application and a model of its own."""
    from ray import serve

    on_replica = replica_config(config)

    def build() -> Any:
        # Runs on the replica: Serve takes functions for factories, and runs the application's lifespan.
        from twostream_ray.serving.application import Service, create_application

        service = Service(on_replica)
        if not on_replica.wait:
            # Before Serve sends it anything.
            service.current.load()
        return create_application(on_replica, service=service)

    options = deployment_options(config)
    return serve.deployment(serve.ingress(build)(), **options).bind()


def replica_config(config: ServeConfig) -> ServeConfig:
    """Settings of one replica: as many decoders as it has CPUs, where no number of them was set."""
    decoders = max(1, int(config.replicas.cpus)) if config.decoders is None else config.decoders
    return replace(config, decoders=decoders)


def deployment_options(config: ServeConfig) -> dict[str, Any]:
    """What Serve is told of the deployment.

    A replica refuses for itself what its own queue has no room for, with the reason as JSON. So a request goes to a
    replica at once: one that waits in a proxy has its body read into that proxy's memory, whatever its size.
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
    """Answer by replicas until a signal comes; what has begun is answered. Gives 0.

    Args:
        config: which model, where to listen, what to refuse, how many replicas.
        announce: called with a line once requests are taken.

    Raises:
        ConfigError: the extra `serve` is not installed, or there is no port to listen at.
        ClusterError: see `served_by_replicas`.
    """
    require_extra()
    if config.port == 0:
        raise ConfigError("port must be a number from 1 on where there are replicas, got 0: every node's proxy has it")
    with served_by_replicas(config) as url:
        announce(f"{config.replicas.number} replicas with {config.model} answer at {url}; Ctrl-C ends them")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


@contextmanager
def served_by_replicas(config: ServeConfig) -> Iterator[str]:
    """Replicas on the cluster that RAY_ADDRESS names, or on one of this machine, while the block runs; gives the URL.

    On a shared cluster Serve itself stays when the block ends, for the applications of others.

    Raises:
        ClusterError: the cluster cannot be reached or has no room, the port is taken, or no replica started.
    """
    with ray_session():
        from ray import serve

        from twostream_ray.runs.cluster.private_cluster import private_folder

        is_private = private_folder() is not None
        if is_private:
            # Ray would start its proxy again and again where somebody else listens.
            listening_socket(config.host, config.port).close()
        require_room(
            [_resources(config)] * config.replicas.number,
            what="replicas of the service",
            way_out="let replicas.number, replicas.cpus or replicas.gpus be smaller",
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
            f"{config.replicas.number} replicas were wanted, they did not start: {said[-600:]}"
        ) from error


def _resources(config: ServeConfig) -> Mapping[str, float]:
    wanted = {"CPU": config.replicas.cpus, "GPU": config.replicas.gpus}
    return {name: amount for name, amount in wanted.items() if amount}
