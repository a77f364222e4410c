"""A watchdog over calls of MLflow's client: its time-outs are of each read, so a server that drips passes none."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_BETWEEN_STOPS_S = 1.0


class _OverdueError(Exception):
    """Raised in the midst of work that nobody waits for any more."""


def limited(work: Callable[[Callable[[], None]], _Result], *, limit_s: float, grace_s: float) -> _Result:
    """Do work in a thread of its own, which may call what it is handed to say that it gets on; gives its result.

    Raises:
        TimeoutError: for `limit_s` seconds it has not got on. It may go on for `grace_s` more, then it is stopped.
    """
    moved = time.monotonic()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def progressed() -> None:
        nonlocal moved
        moved = time.monotonic()

    def run() -> None:
        try:
            results.append(work(progressed))
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    # A daemon: whatever a server does, it does not keep the process from ending.
    thread = threading.Thread(target=run, name="mlflow", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(max(0.01, moved + limit_s - time.monotonic()))
        if thread.is_alive() and time.monotonic() - moved >= limit_s:
            threading.Thread(target=_stop, args=(thread, grace_s), name="mlflow-stop", daemon=True).start()
            raise TimeoutError(f"no end within {limit_s:g} s")
    if errors:
        raise errors[0]
    return results[0]


def _stop(thread: threading.Thread, grace_s: float) -> None:
    """Raise an exception in a thread until it ends; it is seen between two reads of a socket."""
    thread.join(grace_s)
    while thread.is_alive():
        assert thread.ident is not None  # noqa: S101  (it was started)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_OverdueError))
        thread.join(_BETWEEN_STOPS_S)
