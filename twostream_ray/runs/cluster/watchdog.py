"""Watchdog over Ray's own processes: without them Ray waits for minutes, or aborts the driver without a word."""

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
_PATIENCE_S = 15.0
"""How long the driver may take to leave what it was doing; something in it may wait for Ray for ever."""
_VITAL = ("gcs_server", "raylet")
_TOLD_TO_STOP = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
_SETTLE_S = 0.5
"""Where all processes of a job get SIGTERM, one may end for want of another before that one has ended."""

_stop_noted = threading.Event()


def note_stop() -> None:
    """Remember that this process got SIGTERM: whatever ends of Ray from now on got it as well."""
    _stop_noted.set()


def is_stopping() -> bool:
    """Whether this process got SIGTERM while the present cluster is there."""
    return _stop_noted.is_set()


@contextmanager
def watched(node: Any, *, folder: str, end: Callable[[], None]) -> Iterator[None]:
    """Interrupt the block when a process of Ray's `node` that the cluster cannot do without ends.

    A block that is not left in time ends with this process, after `end`. Ray's logs are in `folder`.

    Raises:
        ClusterError: such a process has died.
        KeyboardInterrupt: it got SIGTERM, as this process may have as well.
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
            # Raised in the main thread, whatever it is waiting for.
            signal.pthread_kill(main, signal.SIGINT)
            if not done.wait(_PATIENCE_S):
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
    # What was killed comes before what ended for want of it.
    name, code = min(ended, key=lambda one: (one[1] >= 0 or one[1] in _TOLD_TO_STOP, one[1] not in _TOLD_TO_STOP))
    if code in _TOLD_TO_STOP:
        return KeyboardInterrupt()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return ClusterError(
        f"Ray's process {name} of this run {how} (killed, or out of memory: its log is in {folder} until the "
        "next start); what was finished is kept, run the same command again to resume"
    )
