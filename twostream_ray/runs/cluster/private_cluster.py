"""Private Ray cluster of one run on this machine: token authentication, loopback only, own folder and sessions."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.watchdog import is_stopping, watched
from twostream_ray.storage.locks import locked

_PREFIX = "ts-"
_OWNED = "owned"
"""File in a cluster's folder whose lock its driver holds while it lives."""
_SOCKET_PATH = 107
"""Most bytes of a Unix socket's path."""
_LONGEST_SOCKET = len(f"/{_PREFIX}12345678/r/session_2026-01-01_00-00-00_000000_{2**22}/sockets/plasma_store")
_OPEN_FILES = 256
_ADDRESS_SPACE = 8 * 2**30
"""Most bytes that a process maps, besides the object store."""

_FOLDER = "TWOSTREAM_PRIVATE_CLUSTER"
"""Environment variable of a private cluster's processes and its driver, with its folder."""

_TOKEN = secrets.token_hex(32)
"""Token of all clusters of this process: Ray caches the first one that it reads."""


@contextmanager
def private_cluster(settings: Mapping[str, str], *, dashboard_port: int | None) -> Iterator[None]:
    """Start a cluster that ends with the block, with a dashboard if a port for it is given.

    Only processes with its token can connect to it, and only from this machine. Its processes are in sessions of their
    own, so that signals to this process group do not reach them.

    Raises:
        ClusterError: Ray cannot start with this shell's limits or temporary folder, or one of its processes died.
        KeyboardInterrupt: Ray got SIGTERM.
    """
    import ray

    from twostream_ray.runs.cluster.ray_private import own_node, read_environment_again

    require_limits()
    base = short_folder()
    remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        with locked(folder / _OWNED, keep=True) as owned, environment({**settings, _FOLDER: str(folder)}):
            try:
                with authenticated():
                    _start(ray, folder, dashboard_port)
                node = own_node()
                with watched(node, folder=node.get_logs_dir_path(), end=lambda: end_processes(folder)):
                    yield
            except BaseException as error:
                keep = isinstance(error, Exception)
                if keep:
                    # The folder is kept for Ray's logs; the next start removes it, and ends processes that write to
                    # it. This process has the logs open, so it keeps the lock for as long as it lives.
                    os.dup(owned.fileno())
                _stop(ray, folder, keep=keep)
                raise
            _stop(ray, folder, keep=False)
    finally:
        read_environment_again()


def private_folder() -> Path | None:
    """The folder of the private cluster that this process is connected to; None on a shared cluster."""
    from twostream_ray.runs.cluster.ray_private import own_node

    node, folder = own_node(), os.environ.get(_FOLDER)
    if not folder or node is None or not Path(node.get_session_dir_path()).is_relative_to(folder):
        return None
    return Path(folder)


@contextmanager
def authenticated() -> Iterator[None]:
    """Set the token in this process's environment while the block runs; processes started meanwhile inherit it."""
    from twostream_ray.runs.cluster.ray_private import read_environment_again

    # Ray then listens on loopback only, as on systems where it supports no clusters of several machines.
    with environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
        read_environment_again()
        yield


def _start(ray: Any, folder: Path, dashboard_port: int | None) -> None:
    from twostream_ray.runs.cluster.ray_private import (
        fewer_processes,
        filter_worker_lines,
        processes_in_own_sessions,
    )

    filter_worker_lines(_is_worth_printing)
    try:
        with processes_in_own_sessions(), fewer_processes(dashboard=dashboard_port is not None):
            ray.init(
                address="local",
                logging_level=logging.WARNING,
                # Workers' output would be mixed into the progress bars; it is in Ray's logs.
                log_to_driver=False,
                include_dashboard=dashboard_port is not None,
                dashboard_port=dashboard_port,
                # Ray makes this folder accessible to everybody, but not its parent.
                _temp_dir=str(folder / "r"),
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"Ray did not start on this machine ({reason}): its logs are in {folder} until the next start; free "
            "memory or processes on this machine, or set RAY_ADDRESS to a cluster"
        ) from error


def _is_worth_printing(lines: list[str]) -> bool:
    """False for the log that Ray prints when it is terminated, and for any line while this process is stopping."""
    return not is_stopping() and not any("Raylet is terminated" in line for line in lines)


def _stop(ray: Any, folder: Path, *, keep: bool) -> None:
    ray.shutdown()
    end_processes(folder)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def require_limits() -> None:
    """Refuse resource limits of this shell under which Ray's processes would die.

    Raises:
        ClusterError: `ulimit -n`, `-v` or `-f` is too low.
    """
    from twostream_ray.runs.cluster.ray_private import object_store_bytes

    store = object_store_bytes()
    wanted = (
        ("-n", "open files of a process", resource.RLIMIT_NOFILE, _OPEN_FILES, 1),
        ("-v", "KiB of address space", resource.RLIMIT_AS, store + _ADDRESS_SPACE, 2**10),
        ("-f", "KiB that a file may have (the object store is one)", resource.RLIMIT_FSIZE, store, 2**10),
    )
    for flag, what, limit, least, unit in wanted:
        # Ray raises the soft limit of open files by itself.
        soft, hard = resource.getrlimit(limit)
        granted = hard if flag == "-n" else soft
        if granted != resource.RLIM_INFINITY and granted < least:
            raise ClusterError(
                f"a Ray cluster on this machine wants at least {-(-least // unit)} {what}, `ulimit {flag}` allows "
                f"{granted // unit}: raise it (`ulimit {flag} unlimited`, or in the job's settings), or set "
                "RAY_ADDRESS to a cluster"
            )


def short_folder() -> Path:
    """The temporary folder, or /tmp if its path is too long for the sockets that Ray creates in it.

    Raises:
        ClusterError: neither can be used.
    """
    named = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    longest = _SOCKET_PATH - _LONGEST_SOCKET
    for path in (named, Path("/tmp")):  # noqa: S108
        if len(os.fsencode(path)) <= longest and os.access(path, os.W_OK | os.X_OK):
            return path
    raise ClusterError(
        f"Ray's sockets need a writable temporary folder whose path has at most {longest} characters; {named} has "
        f"{len(str(named))}, and /tmp cannot be written: set RAY_TMPDIR to one"
    )


def remove_abandoned(base: Path) -> None:
    """Remove what killed runs left in a temporary folder: Ray's processes and files.

    Only folders of this user whose driver is dead, which is known from the lock that it held.
    """
    for folder in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            owned = folder / _OWNED
            if found.st_uid != os.getuid() or folder.is_symlink() or not owned.is_file() or owned.is_symlink():
                continue
            with locked(owned, wait=False):
                end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)


def end_processes(folder: Path) -> None:
    """Kill this user's processes that write to files below a folder, as all of Ray's processes do to their logs."""
    deadline = time.monotonic() + 5
    while (writers := _writers(folder)) and time.monotonic() < deadline:
        for pid in writers:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _writers(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            # Other users' processes, and those that have ended meanwhile.
            with suppress(OSError):
                if process.stat().st_uid == os.getuid() and _writes_below(process, folder):
                    found.append(int(process.name))
    return found


def _writes_below(process: Path, folder: Path) -> bool:
    for file in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            if not str(file.readlink()).startswith(f"{folder}/"):
                continue
            flags = (process / "fdinfo" / file.name).read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                return True
    return False


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
