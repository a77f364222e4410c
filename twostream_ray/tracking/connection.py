"""The way to MLflow: where it is, how it is opened, and what its being away means."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray.errors import ConfigError, RegistryError
from twostream_ray.names import require_name
from twostream_ray.tracking.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow's tracking URI; none: MLFLOW_TRACKING_URI if set, otherwise SQLite, mlflow.db in the working directory."""
    experiment: str = "twostream"
    """Name of the MLflow experiment that runs are filed under; made if missing."""
    model_name: str = "two-stream"
    """Name of the registered model."""
    register: bool = True
    """Whether a finished training registers a version and contends for `champion`."""

    def __post_init__(self) -> None:
        if not self.experiment.strip() or not self.experiment.isprintable() or len(self.experiment) > 500:
            raise ConfigError(
                f"tracking.experiment must be a printable name of at most 500 characters, got {self.experiment[:60]!r}"
            )
        require_name(self.model_name, setting="tracking.model_name", blanks=True)
        if not re.fullmatch(r"[\w.\- ]+", self.model_name):
            raise ConfigError(
                f"tracking.model_name must be of letters, digits, _ . - and space, got {self.model_name!r}"
            )
        self.resolved_uri()

    def resolved_uri(self) -> str:
        """The URI in full: no default, environment or working directory is left to guess elsewhere.

        Raises:
            ConfigError: MLflow has no store of this kind.
        """
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
        if uri.partition("://")[0].partition("+")[0] not in _SCHEMES and uri != "databricks":
            raise ConfigError(
                f"tracking.uri wants {_SQLITE}FILE.db, http(s)://HOST or another database, got {redact(uri)!r}: "
                "MLflow no longer keeps runs in plain folders"
            )
        if uri.startswith(_SQLITE):
            return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"
        return uri

    def artifact_location(self) -> str | None:
        """Where a new experiment keeps its files: beside a SQLite file; None leaves it to the server."""
        uri = self.resolved_uri()
        if not uri.startswith(_SQLITE):
            return None
        return Path(uri.removeprefix(_SQLITE)).with_name("mlartifacts").as_uri()


def client_for(uri: str) -> MlflowClient:
    """A client of tracking and registry at this (resolved) URI; telemetry off.

    Raises:
        Exception: whatever MLflow raises if a database cannot be opened; a server is not asked yet.
    """
    _load_mlflow()
    from mlflow import MlflowClient

    if uri.startswith(_SQLITE):
        _migrate_once(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def loading_mlflow() -> Iterator[None]:
    """Run a block in which modules of MLflow are first used: what 3.17 warns of in its own code stays unsaid.

    Its tables meet SQLAlchemy 2.1, and its pyfunc module has hints that it dislikes itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        yield


@cache
def _load_mlflow() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # At the end of a run MLflow prints a link to it, user and password of the tracking URI included.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A uv.lock in the working directory is not the model's: its requirements are pinned from what is installed.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    # A server's client would print two lines of links at the end of each run, through bars and tables.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    # Alembic tells every migration of a new SQLite file, some 60 lines, at level INFO.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


@cache
def _migrate_once(uri: str) -> None:
    """Make the tables of a new SQLite file; one process at a time, as MLflow's migrations do not bear company."""
    from mlflow import MlflowClient

    with alone(uri, wait_s=120), loading_mlflow():
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


@contextlib.contextmanager
def hurried(*, repeat: bool = True, request_s: int = 20) -> Iterator[None]:
    """Run a block with seconds of patience: MLflow's own is 4 minutes, at 120 s a request, for a server that is down.

    Settings that the environment already has stay, except that no request is repeated where `repeat` is False.
    """
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(request_s)}
    changed = {name: value for name, value in patience.items() if name not in os.environ}
    if not repeat:
        changed["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def alone(what: str, *, wait_s: float) -> Iterator[bool]:
    """Run a block that only one process of this machine's user may run at once for the same `what`.

    Gives False where another still runs it after `wait_s` seconds.
    """
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"twostream-{os.getuid()}-{name}.lock"
    deadline = time.monotonic() + wait_s
    with lock.open("w") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.1)
            else:
                yield True
                return


@contextlib.contextmanager
def registry_errors(uri: str, *, wanted: str, way_out: str) -> Iterator[None]:
    """Run a block in which MLflow must answer.

    Raises:
        RegistryError: it did not; names the URI, what was wanted and the way out.
    """
    _load_mlflow()
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        reason = redact(first_line(error))
        raise RegistryError(f"{wanted} failed at MLflow {redact(uri)} ({reason}): {way_out}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
