"""Deadlines for calls of MLflow's client, whose own timeouts are per read, so that a slow sender never hits them."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_BETWEEN_STOPS_S = 1.0


class _OverdueError(Exception):
    """Raised in an abandoned thread."""


def call_with_deadline(work: Callable[[Callable[[], None]], _Result], *, limit_s: float, grace_s: float) -> _Result:
    """Call `work` in a thread of its own and return its result; its argument is a function to report progress with.

    Raises:
        TimeoutError: there was no progress for `limit_s` seconds. After `grace_s` more the thread is stopped.
    """
    last_progress = time.monotonic()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def report_progress() -> None:
        nonlocal last_progress
        last_progress = time.monotonic()

    def run() -> None:
        try:
            results.append(work(report_progress))
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    # A daemon thread, so that no server keeps the process from ending.
    thread = threading.Thread(target=run, name="mlflow", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(max(0.01, last_progress + limit_s - time.monotonic()))
        if thread.is_alive() and time.monotonic() - last_progress >= limit_s:
            threading.Thread(target=_stop, args=(thread, grace_s), name="mlflow-stop", daemon=True).start()
            raise TimeoutError(f"no end within {limit_s:g} s")
    if errors:
        raise errors[0]
    return results[0]


def _stop(thread: threading.Thread, grace_s: float) -> None:
    """Raise an exception in a thread until it ends; it takes effect between two reads of a socket."""
    thread.join(grace_s)
    while thread.is_alive():
        assert thread.ident is not None  # noqa: S101  (it was started)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_OverdueError))
        thread.join(_BETWEEN_STOPS_S)
