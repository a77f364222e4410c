"""HTTP server of a trained model (uvicorn): loads the model, listens, and serves until Ctrl-C or SIGTERM."""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Callable
from contextlib import suppress

from twostream_ray.errors import ConfigError
from twostream_ray.serving.settings import ServeConfig
from twostream_ray.storage.local_files import reason

_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"} | {
    "prometheus_client": "prometheus-client"
}


def serve(config: ServeConfig, *, announce: Callable[[str], object] = lambda _: None) -> int:
    """Serve until a signal, then finish running requests; returns 0, or 1 if some were cut off.

    Args:
        config: model, address and limits.
        announce: called with a line once requests are accepted.

    Raises:
        ConfigError: the extra `serve` is not installed, or the address cannot be used.
        RegistryError, StorageError, CheckpointError: the model cannot be loaded, and `wait` is not set.
    """
    require_extra()
    listener = listening_socket(config.host, config.port)
    with listener:
        import uvicorn

        from twostream_ray.serving.application import Service, create_application
        from twostream_ray.serving.connections import connections_within

        service = Service(config)
        try:
            if not config.wait:
                service.current.load()
            application = create_application(config, service=service)
        except BaseException:
            service.stop()
            raise
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                http=connections_within(config.limits),
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(config.shutdown_seconds)),
            )
        )
        announce(_announcement(listener, service.current.loaded))
        try:
            # uvicorn raises handled signals again.
            with suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
        finally:
            service.stop()
    return 1 if server.force_exit or service.cut_off else 0


def require_extra() -> None:
    """Refuse if packages of the extra `serve` are not installed.

    Raises:
        ConfigError: names them and how to install them.
    """
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}, not installed: pip install 'twostream_ray[serve]'")


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        ConfigError: the address is not of this machine, or the port is in use or not permitted.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host must be an address or a name of this machine, got {host!r}: {error}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # listen() fails if another process listens at the port, which bind() with this option does not.
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use by another process: choose another with --port, or --port 0"
            ) from error
        raise ConfigError(f"cannot listen at port {port} of {host} ({reason(error)}): choose another") from error
    return bound


def _announcement(listener: socket.socket, model: object | None) -> str:
    from twostream_ray.serving.current_model import LoadedModel

    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if isinstance(model, LoadedModel):
        return f"version {model.version} of {model.name} answers at {url}; Ctrl-C ends it"
    return f"there is no model yet, {url}/readyz says when; Ctrl-C ends it"
