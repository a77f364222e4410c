"""SQLite as MLflow's backend store: conversion between paths and SQLAlchemy URLs, and checks of the file.

MLflow would retry 10 times, for 100 s and more, to open a file without permission; so it is checked first.
"""

from __future__ import annotations

import re
import sqlite3
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote

from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.storage.uploaded import refuse_uploaded

_PLAIN = "sqlite:///"
# Equivalent for SQLAlchemy, but MLflow creates the folder of a plain URL without decoding it.
_QUOTED = "sqlite+pysqlite:///"
_OPTIONS = re.compile(
    r"\?((?:timeout|isolation_level|detect_types|check_same_thread|cached_statements)=[^&/?]*(?:&\w+=[^&/?]*)*)\Z"
)
_TO_QUOTE = "%?#"
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_WAY_OUT = "set --tracking.uri (or MLFLOW_TRACKING_URI) to another file, as sqlite:////DIRECTORY/mlflow.db"
_JOBS_ENVIRONMENT = '{"env_vars": {"MLFLOW_TRACKING_URI": "http://HOST:5000"}}'
_JOBS_WAY_OUT = (
    "set --tracking.uri to http(s)://HOST or to a file on shared storage, or submit it with `twostream submit`, which "
    f"sends MLFLOW_TRACKING_URI along (`ray job submit` does by --runtime-env-json '{_JOBS_ENVIRONMENT}')"
)
_LOCK_TIMEOUT_S = 2.0


def is_sqlite(uri: str) -> bool:
    """Whether a tracking URI names a SQLite file."""
    return uri.partition("://")[0] in ("sqlite", "sqlite+pysqlite")


def uri_of(path: Path) -> str:
    """SQLAlchemy's URL of an absolute path with any characters."""
    text = str(path)
    if not set(text) & set(_TO_QUOTE):
        return f"{_PLAIN}{text}"
    return f"{_QUOTED}{quote(text, safe='/ @:+,;=&$!()~*')}"


def resolved(uri: str) -> str:
    """The same URL with an absolute path.

    Raises:
        ConfigError: it names no file.
    """
    path, options = _parts(uri)
    return uri_of(path) + options


def path_of(uri: str) -> Path:
    """The file that a URL names, absolute.

    Raises:
        ConfigError: it names no file.
    """
    return _parts(uri)[0]


def _parts(uri: str) -> tuple[Path, str]:
    scheme, _, text = uri.partition("://")
    found = _OPTIONS.search(text)
    options = found[0] if found else ""
    text = text.removesuffix(options)
    if not text.startswith("/") or text[1:].startswith((":memory:", "file:")) or text.endswith("/"):
        raise ConfigError(
            f"tracking.uri wants a SQLite file that stays, as {_PLAIN}FILE.db, got {uri!r}: give its path, absolute "
            "or relative to the working directory"
        )
    literal, decoded = Path(text[1:]).absolute(), Path(unquote(text[1:])).absolute()
    # A path may have been pasted after sqlite:///: an existing directory of the literal name is meant.
    pasted = scheme == "sqlite" and _ESCAPE.search(text) and literal.parent.is_dir() and not decoded.parent.is_dir()
    return (literal if pasted else decoded), options


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be created, or is not a writable SQLite database.

    Raises:
        StorageError: with the reason and the way out.
    """
    refuse_uploaded(str(path), setting="tracking.uri", way_out=_JOBS_WAY_OUT)
    try:
        target = path.resolve()
        if target.exists():
            _open(path, "BEGIN IMMEDIATE", to="written")
        folder = target.parent
        while not folder.exists():  # MLflow creates missing parent folders
            folder = folder.parent
        # SQLite writes its rollback journal into this folder; the temporary file has no name, so nothing is left.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refused(path, "written", error.strerror or str(error)) from error


def require_readable(path: Path) -> None:
    """Refuse a file that does not exist or is not a SQLite database.

    Raises:
        StorageError: with the reason and the way out.
    """
    refuse_uploaded(str(path), setting="tracking.uri", way_out=_JOBS_WAY_OUT)
    try:
        _open(path, "PRAGMA schema_version", to="read")
    except OSError as error:
        raise _refused(path, "read", error.strerror or str(error)) from error


def _open(path: Path, statement: str, *, to: str) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _refused(path, to, "it is a directory" if path.is_dir() else "it is no regular file")
        database = sqlite3.connect(
            f"file:{quote(str(path))}?mode={'rw' if to == 'written' else 'ro'}", uri=True, timeout=_LOCK_TIMEOUT_S
        )
        try:
            database.execute(statement)
        finally:
            database.close()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:  # another process is just writing
            raise _refused(path, to, str(error)) from error


def _refused(path: Path, to: str, reason: str) -> StorageError:
    return StorageError(f"MLflow's database {path} cannot be {to} ({reason}): {_WAY_OUT}")
