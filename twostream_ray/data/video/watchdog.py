"""Watchdog timer of a child process that counts its own CPU and waiting time, not time taken by other processes.

Wall clocks continue while a machine is suspended or its processes are stopped, and while others have its
processors. A child is not to blame for that, and neither is the video that it decodes.
"""

from __future__ import annotations

import os
import select
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

_SLICE_S = 0.25
"""Longest wait that is counted as one: where more has passed, this process was stopped as well."""
_LEAST_SHARE = 0.01
"""Of a slice in which the child could have run: what is counted at least, so that every wait has an end."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Watchdog:
    """Counts a child's time: of the processors while it runs, on the wall while it waits, none while it is stopped."""

    def __init__(self, process: int, *, silence_s: float, total_s: float) -> None:
        """Begin to count.

        Args:
            process: id of a child of this process.
            silence_s: seconds without an answer, at most.
            total_s: seconds in all, at most.
        """
        self._stat = Path(f"/proc/{process}/stat")
        self._silence_s, self._total_s = silence_s, total_s
        self._total = 0.0
        self._computed = self._look()[1]

    def wait(self, descriptor: int, *, cancelled: threading.Event | None = None) -> None:
        """Wait until there is something to read, or the other end is closed.

        Raises:
            TimeoutError: the child has been silent for too long, or taken too much time in all.
            CancelledError: nobody waits for it any more.
        """
        poll = select.poll()  # select() fails beyond descriptor 1023
        poll.register(descriptor, select.POLLIN)
        silence = 0.0
        while True:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError
            began = time.monotonic()
            ready = poll.poll(_SLICE_S * 1000)
            counted = self._count(min(time.monotonic() - began, _SLICE_S))
            self._total += counted
            silence += counted
            if self._total > self._total_s:
                raise TimeoutError(f"decoding takes longer than {self._total_s:.0f} s: cut it into clips")
            if ready:
                return
            if silence > self._silence_s:
                raise TimeoutError(f"the decoder hung, no frame came for {self._silence_s:.0f} s")

    def _count(self, passed: float) -> float:
        state, computed = self._look()
        before, self._computed = self._computed, computed
        if state in "Tt":
            return 0.0
        if state == "R":
            return min(passed, max(computed - before, _LEAST_SHARE * passed))
        return passed

    def _look(self) -> tuple[str, float]:
        """State of the child's main thread, as ps(1) has it, and seconds that all its threads have computed."""
        try:
            fields = self._stat.read_bytes().rpartition(b")")[2].split()
        except OSError:
            return "X", 0.0
        return fields[0].decode(), (int(fields[11]) + int(fields[12])) * _TICK_S
