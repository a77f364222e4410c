"""MLflow client: tracking URI, timeouts, deadlines, and errors of an unreachable server."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from twostream_ray.errors import RegistryError
from twostream_ray.redaction import redact
from twostream_ray.storage.locks import process_lock
from twostream_ray.tracking import sqlite
from twostream_ray.tracking.settings import SERVERS, TrackingConfig, first_line, is_database, require_driver
from twostream_ray.tracking.timeouts import call_with_deadline

if TYPE_CHECKING:
    from mlflow import MlflowClient

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

ANSWER_S = 120.0
"""Deadline of calls without large files."""

_FIRST_ANSWER_S = 30.0
_DATABASE_ATTEMPTS = 3
"""How often MLflow tries to open a database, within a second; its own is 10 times in 100 s."""


_timeouts_lock = threading.Lock()
_active_timeouts: list[dict[str, str]] = []
_original_timeouts: dict[str, str | None] = {}
"""MLflow client settings of concurrent blocks, and the environment's values before them."""


def client_for(uri: str, *, reads_only: bool = False) -> MlflowClient:
    """A client of tracking and registry at this (resolved) URI; telemetry off.

    Raises:
        StorageError: a SQLite file cannot be written, or with `reads_only` cannot be read.
        ConfigError: a database needs a driver that is not installed, or its URL is invalid.
        Exception: any of MLflow's, if a database cannot be opened; a server is not contacted yet.
    """
    if sqlite.is_sqlite(uri):
        path = sqlite.path_of(uri)
        if reads_only:
            sqlite.require_readable(path)
        else:
            sqlite.require_writable(path)
    elif is_database(uri):
        require_driver(uri)
    load_mlflow()
    from mlflow import MlflowClient

    if not uri.startswith(SERVERS):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = _DATABASE_ATTEMPTS
    if sqlite.is_sqlite(uri) and not reads_only:
        _migrate_once(uri)
    with loading_mlflow():
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def loading_mlflow() -> Iterator[None]:
    """Silence warnings of MLflow 3.17 about its own code while its modules are first imported.

    SQLAlchemy 2.1 deprecates what its tables use, and its pyfunc module warns of its own type hints.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        yield


@functools.cache
def load_mlflow() -> None:
    """Import MLflow, with its telemetry, progress bars and printed links switched off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # At the end of a run MLflow prints links to it, user and password of the tracking URI included.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A uv.lock in the working directory is not the model's: requirements are pinned to the installed versions.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    import mlflow  # noqa: F401

    # Alembic logs every migration of a new SQLite file, some 60 lines, at level INFO.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


@functools.cache
def _migrate_once(uri: str) -> None:
    """Create the tables of a new SQLite file, one process at a time: MLflow's migrations are not concurrency-safe."""
    from mlflow import MlflowClient

    sqlite.path_of(uri).parent.mkdir(parents=True, exist_ok=True)
    with process_lock(uri, wait_s=120), loading_mlflow():
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


@contextlib.contextmanager
def short_timeouts(*, repeat: bool = True, request_s: int = 20) -> Iterator[None]:
    """Set timeouts of seconds while the block runs: MLflow's defaults are 4 minutes, at 120 s per request.

    Values that the environment already has are kept, except that requests are not repeated if `repeat` is False. Blocks
    of several threads may overlap: the newest one's settings apply, and the last to end restores the environment.
    """
    mine = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(request_s)}
    with _timeouts_lock:
        if not _active_timeouts:
            _original_timeouts.update({name: os.environ.get(name) for name in mine})
        mine = {name: _original_timeouts[name] or value for name, value in mine.items()}
        if not repeat:
            mine["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        _active_timeouts.append(mine)
        os.environ.update(mine)
    try:
        yield
    finally:
        with _timeouts_lock:
            # By identity: another block's settings may be equal.
            _active_timeouts[:] = [settings for settings in _active_timeouts if settings is not mine]
            for name, value in (_active_timeouts[-1] if _active_timeouts else _original_timeouts).items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def answer_seconds(config: TrackingConfig) -> float | None:
    """Seconds that a tracking server takes to list an experiment; None for a SQLite file, which need not exist yet.

    Raises:
        RegistryError: it does not answer, is not MLflow, or refuses the credentials.
        StorageError, ConfigError: as `client_for`.
    """
    uri = config.resolved_uri()
    if sqlite.is_sqlite(uri):
        return None

    def ask(_: Callable[[], None]) -> float:
        client = client_for(uri, reads_only=True)
        started = time.perf_counter()
        client.search_experiments(max_results=1)
        return time.perf_counter() - started

    way_out = "check that the server runs and can be reached, and MLFLOW_TRACKING_USERNAME and _PASSWORD"
    with registry_errors(uri, wanted="an answer", way_out=way_out), short_timeouts(repeat=False):
        return call_with_deadline(ask, limit_s=_FIRST_ANSWER_S, grace_s=0)


def with_deadline(limit_s: float) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Decorator with a deadline for a function that takes a TrackingConfig as `config`, or a RunHandle first.

    Raises:
        RegistryError: the function did not end in time.
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @functools.wraps(function)
        def call(*given: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
            config, first = named.get("config"), given[0] if given else None
            uri = (
                config.resolved_uri() if isinstance(config, TrackingConfig) else str(getattr(first, "tracking_uri", ""))
            )
            if sqlite.is_sqlite(uri):  # a file needs no deadline
                return function(*given, **named)
            load_mlflow()
            try:
                return call_with_deadline(lambda _: function(*given, **named), limit_s=limit_s, grace_s=0)
            except TimeoutError as error:
                raise RegistryError(
                    f"MLflow at {redact(uri)} should answer, but did not ({error}): check the server, then run the "
                    "same command again"
                ) from error

        return call

    return decorate


@contextlib.contextmanager
def registry_errors(uri: str, *, wanted: str, way_out: str) -> Iterator[None]:
    """Raise errors of MLflow within the block as RegistryError.

    Raises:
        RegistryError: names the URI, what was wanted and the way out.
    """
    load_mlflow()
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        reason = first_line(error)
        raise RegistryError(f"{wanted} failed at MLflow {redact(uri)} ({reason}): {way_out}") from error
