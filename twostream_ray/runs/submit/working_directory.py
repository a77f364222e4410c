"""Ray runtime_env working_dir package: a content-addressed zip of a folder, without secrets, of limited size."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import printable

_PACKAGE = "twostream_ray"
_SECRET_FILES = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "id_rsa*", "id_ed25519*", ".netrc", ".pypirc", ".git-credentials"),
    *("auth_token", ".aws", ".ssh", ".ray", ".kube", ".docker", "credentials", "credentials.json"),
)
"""Names of secret files in any folder; .env.example and the like hold none, but no job needs them."""
_RESULTS = ("runs", "mlruns", "mlartifacts", "mlflow.db*", "mlflow.log", "__pycache__", "*.pyc", "node_modules", "venv")
"""Names that a job never reads: results of earlier runs, and files that tools leave behind."""
_MOST_FILES = 50_000
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Package:
    """A job's files as one zip."""

    name: str
    """Ray's name for the package, from a hash of its content."""
    content: bytes
    """The zip; the same files give the same bytes."""
    names: frozenset[str]
    """Names of the files in it."""
    notes: tuple[str, ...]
    """Files left out that the job may need, one sentence each."""

    @property
    def uri(self) -> str:
        """URI for a runtime environment."""
        return f"gcs://{self.name}"


def pack(folder: Path, *, exclude: Sequence[str] = (), limit_bytes: int) -> Package:
    """Zip the files of a folder, and this package if the folder does not contain it.

    Raises:
        ConfigError: the folder does not exist, cannot be read, or is larger than the limit.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigError(f"working_dir wants a folder, {folder} is not one: `--working_dir FOLDER`")
    listed = _listed_by_git(folder)
    chosen, secret, linked = {}, [], []
    for name in _walked(folder) if listed is None else listed:
        parts = PurePosixPath(name).parts
        if _matches(parts, _RESULTS) or _matches(parts, exclude):
            continue
        if _matches(parts, _SECRET_FILES):
            secret.append(name)
            continue
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            linked.append(name)
        elif path.is_file():
            chosen[name] = path
        if len(chosen) > _MOST_FILES:
            raise ConfigError(f"{folder} has more than {_MOST_FILES:,} files for a job: {_WAY_OUT}")
    _refuse_large(folder, chosen, limit_bytes=20 * limit_bytes)
    if f"{_PACKAGE}/__init__.py" not in chosen:
        chosen |= _own_files()
    content = _zipped(chosen)
    if len(content) > limit_bytes:
        raise ConfigError(_too_large(folder, chosen, f"{_mb(len(content))} packed", limit_bytes))
    notes = [
        f"{len(names)} {what} {'is' if len(names) == 1 else 'are'} left out: {printable(', '.join(names[:_SHOWN]))}"
        + (" ..." if len(names) > _SHOWN else "")
        for names, what in (
            (secret, "of the files, secrets by their names,"),
            (linked, "of the links, to other folders,"),
        )
        if names
    ]
    name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip"
    return Package(name=name, content=content, names=frozenset(chosen), notes=tuple(notes))


_WAY_OUT = "--working_dir names a smaller folder, --exclude PATTERN leaves files out, as .gitignore does"


def _listed_by_git(folder: Path) -> list[str] | None:
    """Files that git tracks or would track, relative to the folder; None outside a repository."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)  # noqa: S603  (fixed arguments)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return sorted(os.fsdecode(name) for name in set(done.stdout.split(b"\0")) - {b""})


def _walked(folder: Path) -> Iterator[str]:
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and not _matches((one,), _RESULTS))
        for name in sorted(files):
            # A job reads no hidden files, but a secret one is mentioned in the notes.
            if not name.startswith(".") or _matches((name,), _SECRET_FILES):
                yield (Path(directory) / name).relative_to(folder).as_posix()


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    whole = "/".join(parts)
    return any(
        fnmatch.fnmatchcase(one, pattern.rstrip("/")) for pattern in patterns for one in (whole, *parts) if pattern
    )


def _own_files() -> dict[str, Path]:
    """The files of this package, by their names in a working directory."""
    root = Path(__file__).resolve().parents[2]
    found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{_PACKAGE}/{path.relative_to(root).as_posix()}": path for path in found}


def _zipped(files: dict[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            try:
                content, mode = path.read_bytes(), path.stat().st_mode
            except OSError as error:
                raise ConfigError(f"working_dir: {path} cannot be read ({error.strerror}): --exclude it") from error
            # One fixed time: the same files give the same package, which is uploaded once.
            entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100755 if mode & 0o100 else 0o100644) << 16
            archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _refuse_large(folder: Path, files: dict[str, Path], *, limit_bytes: int) -> None:
    """Refuse files that no compression makes small enough, before they are read."""
    total = sum(path.stat().st_size for path in files.values())
    if total > limit_bytes:
        raise ConfigError(_too_large(folder, files, _mb(total), limit_bytes))


def _too_large(folder: Path, files: dict[str, Path], size: str, limit_bytes: int) -> str:
    sizes: Counter[str] = Counter()
    for name, path in files.items():
        sizes[name.partition("/")[0]] += path.stat().st_size
    largest = ", ".join(f"{printable(name)} {_mb(size)}" for name, size in sizes.most_common(_SHOWN))
    return (
        f"the files of {folder} are {size}, a job may bring {_mb(limit_bytes)} (upload_mb); the largest are {largest}: "
        f"{_WAY_OUT}; data belong in a bucket"
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
