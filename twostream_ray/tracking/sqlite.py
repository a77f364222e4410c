"""SQLite as MLflow's backend store: paths to SQLAlchemy's URLs and back, and checks that a file can be opened.

MLflow would try 10 times, for 100 s and more, to open a file that may not be opened: no retry mends that, so it is
checked first.
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
# For SQLAlchemy the same as the plain one. MLflow makes the folder of a plain URL without decoding it.
_QUOTED = "sqlite+pysqlite:///"
_OPTIONS = re.compile(
    r"\?((?:timeout|isolation_level|detect_types|check_same_thread|cached_statements)=[^&/?]*(?:&\w+=[^&/?]*)*)\Z"
)
_TO_QUOTE = "%?#"
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_WAY_OUT = "let --tracking.uri (or MLFLOW_TRACKING_URI) name another file, as sqlite:////DIRECTORY/mlflow.db"
_JOBS_ENVIRONMENT = '{"env_vars": {"MLFLOW_TRACKING_URI": "http://HOST:5000"}}'
_JOBS_WAY_OUT = (
    "set --tracking.uri to http(s)://HOST or to a file that all nodes see, or submit it by `twostream submit`, which "
    f"sends MLFLOW_TRACKING_URI along (`ray job submit` does by --runtime-env-json '{_JOBS_ENVIRONMENT}')"
)
_LOCK_TIMEOUT_S = 2.0


def is_sqlite(uri: str) -> bool:
    """Whether a tracking URI is of a SQLite file."""
    return uri.partition("://")[0] in ("sqlite", "sqlite+pysqlite")


def uri_of(path: Path) -> str:
    """The URL that SQLAlchemy opens this absolute path by, of any characters."""
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
    # People paste paths behind sqlite:///; a directory that is there as it was written is what they mean.
    pasted = scheme == "sqlite" and _ESCAPE.search(text) and literal.parent.is_dir() and not decoded.parent.is_dir()
    return (literal if pasted else decoded), options


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be made, or is there and is no SQLite database that can be written.

    Raises:
        StorageError: with the reason and the way out.
    """
    refuse_uploaded(str(path), setting="tracking.uri", way_out=_JOBS_WAY_OUT)
    try:
        target = path.resolve()
        if target.exists():
            _open(path, "BEGIN IMMEDIATE", to="written")
        folder = target.parent
        while not folder.exists():  # MLflow's store is made with the folders above it
            folder = folder.parent
        # The folder of its rollback journal while it is written; this file has no name, so nothing stays.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refused(path, "written", error.strerror or str(error)) from error


def require_readable(path: Path) -> None:
    """Refuse a file that is not there or is no SQLite database.

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
    return StorageError(f"MLflow wants a database that can be {to} at {path}, it cannot ({reason}): {_WAY_OUT}")
