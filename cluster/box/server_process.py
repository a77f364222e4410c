"""A server process in its own session, which outlives its parent and is identified by process id and start time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from twostream_ray.errors import ClusterError
from twostream_ray.processes import is_gone, started_at


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A process started here; a later process with the same id is not mistaken for it."""

    name: str
    """Its name in messages."""
    pid: int
    """Its process id, which is its session id too."""
    start: int
    """When it began, in clock ticks since boot."""
    log: str
    """Path of the log file of it and its children."""

    @classmethod
    def started(
        cls,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        **account: Any,
    ) -> ServerProcess:
        """Start a command and append its output to a file; optionally as another user (`user`, `group`)."""
        with log.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **account,
            )
        # Never waited for through this object: it may outlive this process.
        process.returncode = 0
        return cls(name=name, pid=process.pid, start=started_at(process.pid) or 0, log=str(log))

    def has_ended(self) -> bool:
        """Whether it has ended, or is a zombie of this process."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return is_gone(self.pid, start=self.start)

    def below(self) -> list[psutil.Process]:
        """Its child processes, recursively."""
        if self.has_ended():
            return []
        with suppress(psutil.Error):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def wait_until(self, answers: Callable[[], bool], *, seconds: float) -> None:
        """Wait until it serves.

        Raises:
            ClusterError: it has ended, or there is no sign in this time; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not answers():
            if self.has_ended() or time.monotonic() > deadline:
                why = "has ended" if self.has_ended() else f"did not answer within {seconds:.0f} s"
                raise ClusterError(f"{self.name} {why}; its log {self.log} ends with: {last_lines(Path(self.log))}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it and its descendants; returns when they have ended."""
        kill_all([self])


def kill_all(servers: Sequence[ServerProcess]) -> None:
    """Kill processes and their descendants together; returns when they have ended."""
    doomed = [process for server in servers for process in server.below()]
    for server in servers:
        if not server.has_ended():
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()  # only if it still is the process that it was
    psutil.wait_procs(doomed, timeout=10)
    deadline = time.monotonic() + 10
    while not all(server.has_ended() for server in servers) and time.monotonic() < deadline:
        time.sleep(0.02)


def last_lines(log: Path, *, characters: int = 600) -> str:
    """The last lines of a log, joined into one."""
    with suppress(OSError):
        return " ".join(log.read_text(errors="replace").split())[-characters:] or "nothing"
    return "nothing"


def answers_at(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a process listens on a port."""
    with socket.socket() as asked:
        asked.settimeout(1)
        return asked.connect_ex((host, port)) == 0


def is_free(port: int) -> bool:
    """Whether a loopback port is free, and no process listens on it at any address of this machine."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("0.0.0.0", port))  # noqa: S104  (bound for a moment, not listened at)
        except OSError:
            return False
    return True


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports.

    They are below those that systems give to clients, above those that Ray's workers draw theirs from.

    Raises:
        ClusterError: there are none.
    """
    for first in range(20000 + os.getpid() % 500 * 10, 32000, 10):
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise ClusterError(f"no {count} neighbouring ports between 20000 and 32000 are free: end what listens there")
