"""Settings of tracking: MLflow's tracking URI, experiment, and registered model.

Separate from `connection`, as the settings parser executes the TYPE_CHECKING blocks of a settings class's module, which
would import MLflow, taking a second, whenever a command line is parsed.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import redact, with_quoted_credentials
from twostream_ray.settings.names import require_name
from twostream_ray.storage.temporary_folders import own_folder
from twostream_ray.tracking import sqlite

SERVERS = ("http", "https")
"""Schemes of a tracking server."""

AUTO = "auto"
"""Value of a setting that is chosen by the data."""
UNNAMED_MODEL = "two-stream"
"""Registered model of data sets without a name."""
UNNAMED_DATA = "unnamed"
"""Name of a data set without a name, as an input of a run."""
_LONGEST_MODEL_NAME = 200
"""MLflow's limit is 256 characters."""

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow tracking server, experiment and registered model."""

    uri: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or else SQLite in mlflow.db in the working directory."""
    experiment: str = "twostream"
    """Name of the MLflow experiment of the runs, which is created if missing."""
    model_name: str = AUTO
    """Name of the registered model: letters, digits, _ . - and spaces; auto: the data set's name (`catalog.name` of
    `ingest`), or two-stream without one."""
    register: bool = True
    """Whether a finished training registers a version, and promotes it if it beats the champion."""

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

    def registered_name(self, data_set: str = "") -> str:
        """Name of the registered model for a data set; "" is a data set without a name."""
        if self.model_name != AUTO:
            return self.model_name
        return re.sub(r"[^\w.\- ]", "_", data_set)[:_LONGEST_MODEL_NAME].strip() or UNNAMED_MODEL

    def uri_option(self) -> str:
        """The command-line option for this MLflow, after a space; empty if it is the default.

        Also empty if the URI contains a password, which is not shown and belongs in MLFLOW_TRACKING_URI.
        """
        uri = self.resolved_uri()
        found = uri == TrackingConfig().resolved_uri() or redact(uri) != uri
        return "" if found else f" --tracking.uri {shlex.quote(uri)}"

    def resolved_uri(self) -> str:
        """The absolute URI, independent of defaults, environment and working directory.

        Raises:
            ConfigError: it is not a URI, or of a kind that MLflow does not support.
        """
        uri = (self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
        if not uri:
            return sqlite.uri_of(Path("mlflow.db").absolute())
        scheme = uri.partition("://")[0]
        if sqlite.is_sqlite(uri):
            return sqlite.resolved(uri)
        uri = with_quoted_credentials(uri)
        if scheme in SERVERS:
            _require_host(uri)
        elif scheme.partition("+")[0] not in (*_DATABASES, "databricks"):
            raise ConfigError(
                "tracking.uri (or MLFLOW_TRACKING_URI) wants sqlite:///FILE.db, http(s)://HOST or another database, "
                f"got {redact(uri)!r}: MLflow no longer keeps runs in plain folders"
            )
        return uri

    def artifact_location(self) -> str | None:
        """Artefact location of a new experiment: beside a SQLite file; None leaves it to the server."""
        uri = self.resolved_uri()
        return sqlite.path_of(uri).with_name("mlartifacts").as_uri() if sqlite.is_sqlite(uri) else None

    def require_usable(self) -> None:
        """Refuse settings that a retry cannot fix, before anything slow starts; an unreachable server is not refused.

        Raises:
            StorageError: a SQLite file cannot be written, or the user's temporary folder cannot be created.
            ConfigError: a database needs a driver that is not installed, or its URL is invalid.
        """
        uri = self.resolved_uri()
        own_folder()
        if sqlite.is_sqlite(uri):
            sqlite.require_writable(sqlite.path_of(uri))
        elif is_database(uri):
            require_driver(uri)


def is_database(uri: str) -> bool:
    """Whether it is a database that MLflow opens itself, such as SQLite."""
    return uri.partition("://")[0].partition("+")[0] in _DATABASES


def _require_host(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or re.search(r"[\s\\^|<>{}]", uri):
        raise ConfigError(
            f"tracking.uri (or MLFLOW_TRACKING_URI) wants http(s)://HOST or http(s)://HOST:PORT, got {redact(uri)!r}: "
            "name a host and a port from 1 to 65535"
        )


def require_driver(uri: str) -> None:
    """Refuse a database whose driver is not installed.

    Raises:
        ConfigError: names the URI and the way out.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        create_engine(uri)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise ConfigError(
            f"tracking.uri (or MLFLOW_TRACKING_URI) {redact(uri)!r} cannot be opened ({first_line(error)}): "
            "install the database's driver, or name another store, as sqlite:///FILE.db"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message without secrets, at most 300 characters."""
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])[:300]
