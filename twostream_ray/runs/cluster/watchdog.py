"""Watchdog of Ray's processes: when one dies, the driver ends at once with an error that says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twostream_ray.errors import ClusterError

_LOOK_EVERY_S = 0.25
_EXIT_TIMEOUT_S = 15.0
"""How long the driver may take to end after the interrupt; it may be waiting for Ray forever."""
_VITAL = ("gcs_server", "raylet")
_SIGTERM_CODES = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
_SETTLE_S = 0.5
"""If all processes of a job get SIGTERM, one may end because another is ending, before that one has ended."""

_stop_noted = threading.Event()


def note_stop() -> None:
    """Record that this process got SIGTERM: Ray's processes that end from now on got it too."""
    _stop_noted.set()


def is_stopping() -> bool:
    """Whether this process got SIGTERM since the current cluster started."""
    return _stop_noted.is_set()


@contextmanager
def watched(node: Any, *, folder: str, end: Callable[[], None]) -> Iterator[None]:
    """Interrupt the block when a vital process of Ray's `node` ends.

    If the block does not end in time, this process ends after calling `end`. Ray's logs are in `folder`.

    Raises:
        ClusterError: such a process has died.
        KeyboardInterrupt: it got SIGTERM, as this process may have too.
    """
    done, interrupted = threading.Event(), threading.Event()
    _stop_noted.clear()

    def look() -> None:
        while not done.wait(_LOOK_EVERY_S):
            if _lost(node, folder) is None:
                continue
            done.wait(_SETTLE_S)
            lost = _lost(node, folder)
            interrupted.set()
            # Interrupts the main thread, whatever it is waiting for.
            signal.pthread_kill(main, signal.SIGINT)
            if not done.wait(_EXIT_TIMEOUT_S):
                print(f"twostream: error: {lost}", file=sys.stderr, flush=True)  # noqa: T201
                end()
                os._exit(130 if isinstance(lost, KeyboardInterrupt) else 2)
            return

    main = threading.main_thread().ident or 0
    threading.Thread(target=look, name="watch over Ray", daemon=True).start()
    try:
        yield
    except BaseException as error:
        lost = _lost(node, folder)
        if lost is None or (isinstance(error, KeyboardInterrupt) and not interrupted.is_set()):
            raise
        raise lost from error
    finally:
        done.set()


def _lost(node: Any, folder: str) -> ClusterError | KeyboardInterrupt | None:
    vital = [(name, started.process.poll()) for name in _VITAL for started in node.all_processes.get(name, ())]
    ended = [(name, code) for name, code in vital if code is not None]
    if not ended:
        return None
    if _stop_noted.is_set():
        return KeyboardInterrupt()
    # A killed process is named rather than one that ended because of it.
    name, code = min(ended, key=lambda one: (one[1] >= 0 or one[1] in _SIGTERM_CODES, one[1] not in _SIGTERM_CODES))
    if code in _SIGTERM_CODES:
        return KeyboardInterrupt()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return ClusterError(
        f"Ray's process {name} of this run {how} (killed, or out of memory: its log is in {folder} until the "
        "next start); what was finished is kept, run the same command again to resume"
    )
