"""Parent side of a sandboxed child process: start, resource limits per job, and answers with timeouts."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

from twostream_ray.data.video.confinement import child_environment, confine, limit_memory, limit_time, limit_writing
from twostream_ray.data.video.watchdog import Watchdog

_log = logging.getLogger(__name__)
_START_S = 600.0
"""What starting may take: a cluster's nodes may read the libraries from a slow disk, all at once."""
_LENGTH = struct.Struct("<Q")


class ConfinedProcess:
    """An interpreter that has given up what `confinement.confine` says before it is asked for anything."""

    def __init__(self, code: str) -> None:
        """Start it; the code calls `accept_confinement` first."""
        self.is_ready = False
        """Whether it has been confined."""
        self.cancelled: threading.Event | None = None
        """Set by another thread when its answers are no longer wanted."""
        self._files, theirs = socket.socketpair()
        with theirs:
            # Not multiprocessing: it would run the user's own script again in the child.
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and code
                [sys.executable, "-P", "-c", code, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=child_environment(),
            )
        self.pid = self._process.pid
        self.stdin: Any = self._process.stdin
        self._watchdog = Watchdog(self.pid, silence_s=_START_S, total_s=_START_S)

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it is there."""
        return self._process.poll()

    def wait_until_ready(self) -> None:
        """Wait until it has been confined, and say what the kernel does not offer for it.

        Raises:
            EOFError: it is gone.
            TimeoutError: it does not start.
        """
        if not self.is_ready:
            (length,) = _LENGTH.unpack(self.read(_LENGTH.size))
            _say_once(tuple(json.loads(self.read(length))))
            self.is_ready = True

    def allow_time(self, seconds: float, *, silence_s: float) -> None:
        """Limit its total time from now on, and the time without an answer.

        Raises:
            EOFError: it is gone.
        """
        self._watchdog = Watchdog(self.pid, silence_s=silence_s, total_s=seconds)
        with _warn_if_unlimited("time"):
            limit_time(self.pid, seconds * (os.cpu_count() or 1))

    def allow_memory(self, size_bytes: int) -> None:
        """Limit its address space beyond the present size.

        Raises:
            EOFError: it is gone.
        """
        with _warn_if_unlimited("memory"):
            limit_memory(self.pid, size_bytes)

    def allow_writing(self, wanted: bool) -> None:
        """Allow or forbid writing to the file descriptors passed to it.

        Raises:
            EOFError: it is gone.
        """
        with _warn_if_unlimited("writing"):
            limit_writing(self.pid, allowed=wanted)

    def send_file(self, file: BinaryIO) -> None:
        """Pass it an open file descriptor, as it cannot open files itself; see `receive_file`."""
        socket.send_fds(self._files, [b"F"], [file.fileno()])

    def read(self, size: int) -> bytes:
        """So many bytes of its answers.

        Raises:
            EOFError: it is gone.
            TimeoutError: it takes longer than it may.
            CancelledError: its answers are no longer wanted.
        """
        answers: Any = self._process.stdout
        parts = []
        while size:
            self._watchdog.wait(answers.fileno(), cancelled=self.cancelled)
            part = os.read(answers.fileno(), min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self._process.communicate()
        self._files.close()


@contextmanager
def _warn_if_unlimited(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        _say_once((f"its {what} is not bound ({error.strerror})",))
    except OSError:
        raise EOFError from None


@cache
def _say_once(missing: tuple[str, ...]) -> None:
    if missing:
        _log.warning("the process that decodes videos is confined in part on this system: %s", "; ".join(missing))


def accept_confinement(answers: BinaryIO) -> socket.socket:
    """The child's first act: give up what decoding does not need, and say what the kernel keeps; for `receive_file`."""
    files = socket.socket(fileno=int(sys.argv[1]))
    missing = json.dumps(confine()).encode()
    answers.write(_LENGTH.pack(len(missing)) + missing)
    answers.flush()
    return files


def receive_file(files: socket.socket) -> BinaryIO:
    """In the child: the next file that it is lent."""
    _, (descriptor,), _, _ = socket.recv_fds(files, 1, 1)
    writes = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return os.fdopen(descriptor, "wb" if writes else "rb")
