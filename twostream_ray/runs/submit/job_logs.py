"""Log streaming of a job until it ends, with reconnects; its exit code and its final error."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from twostream_ray.errors import ClusterError
from twostream_ray.redaction import one_line, printable, redact
from twostream_ray.runs.submit.dashboard import ENDED, Dashboard, Job, UnreachableError

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_GIVE_UP_S = 1_800.0
"""Seconds of being awake: the monotonic clock stops while a laptop sleeps."""
_REMEMBERED = 40
"""Last lines of output, in which the job's error is searched."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OWN_ERROR = re.compile(r"twostream\b.*: error: (?P<said>.*)")
STOPPED_CODE = 130


class JobLog:
    """A job's output, each line printed once however often the connection breaks."""

    def __init__(self, dashboard: Dashboard, name: str, *, write: Callable[[str], None], notify: Callable[[str], None]):
        """`write` gets complete lines of the job, `notify` sentences about the connection."""
        self._dashboard, self._name, self._write, self._notify = dashboard, name, write, notify
        self._received = 0
        self._unfinished = ""
        self._last: list[str] = []

    def follow(self) -> Job:
        """Print the job's output until it ends; returns the job.

        Raises:
            ClusterError: the cluster was unreachable for half an hour, or has lost the job.
            KeyboardInterrupt: Ctrl-C; the job continues.
        """
        pause, lost_at = _FIRST_PAUSE_S, None
        while True:
            before = self._received
            try:
                asyncio.run(self._receive())
                job = self._dashboard.job(self._name)
                if job["status"] in ENDED:
                    self._flush()
                    return job
            except UnreachableError as error:
                now = time.monotonic()
                if self._received > before or lost_at is None:
                    pause, lost_at = _FIRST_PAUSE_S, now
                    self._notify(f"connection lost ({one_line(error)}); the job continues, reconnecting")
                if now - lost_at > _GIVE_UP_S:
                    raise ClusterError(
                        f"{error}; `twostream jobs logs {self._name}` follows the job {self._name} once it does"
                    ) from error
            else:
                lost_at = None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @property
    def final_error(self) -> str:
        """The error that the job ended with, from its output: this package's error line, or else the last line."""
        for line in reversed(self._last):
            if own := _OWN_ERROR.search(line):
                return own["said"]
        return next((line for line in reversed(self._last) if line.strip()), "")

    async def _receive(self) -> None:
        """Print what is new: every connection sends the output from its beginning."""
        passed = 0
        async for text in self._dashboard.log(self._name):
            fresh = text[max(self._received - passed, 0) :]
            passed += len(text)
            self._received = max(self._received, passed)
            self._print(fresh)

    def _print(self, text: str) -> None:
        *whole, self._unfinished = (self._unfinished + text).split("\n")
        for line in whole:
            shown = redact(printable(_COLOURS.sub("", line), lines=True))
            self._last = [*self._last[1 - _REMEMBERED :], shown]
            self._write(shown)

    def _flush(self) -> None:
        if self._unfinished:
            self._print("\n")


def exit_code(job: Job) -> int:
    """Exit code of an ended job: its own, or 128 plus the signal that killed it."""
    if job["status"] == "SUCCEEDED":
        return 0
    if job["status"] == "STOPPED":
        return STOPPED_CODE
    code = job.get("driver_exit_code")
    if not isinstance(code, int) or code == 0:
        return 1
    return 128 - code if code < 0 else code
