"""Joining the Ray cluster that is there, or starting one on this machine for as long as a run lasts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_NOWHERE = "http://127.0.0.1:9"
"""An address that refuses at once."""


@contextmanager
def ray_session(*, dashboard: bool = False) -> Iterator[None]:
    """Connect to the cluster named by RAY_ADDRESS (set inside a submitted job), or start a local one and stop it again.

    A connection that is already there is used and left alone. A local cluster has a `dashboard` if one is wanted.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    on_cluster = bool(os.environ.get("RAY_ADDRESS"))
    port = _free_port() if dashboard and not on_cluster else None
    settings = _cluster_settings() if on_cluster else _private_settings(port)
    with environment(settings):
        import ray

        ray.init(
            address=os.environ.get("RAY_ADDRESS") or "local",
            logging_level=logging.WARNING,
            # Every worker line would come prefixed into the middle of our progress; they stay in Ray's logs.
            log_to_driver=False,
            **({} if on_cluster else {"include_dashboard": dashboard, "dashboard_port": port}),
        )
        # After the import that configures it: our own progress bars say what its lines would.
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            ray.shutdown()


def _cluster_settings() -> dict[str, str]:
    """What Ray reads from the environment of a run on a cluster of others."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray Train looks every 2 s by default, and waits as long again before it replaces workers that were lost.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # The board of a training looks out itself.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    return _unless_set(settings)


def _private_settings(dashboard_port: int | None) -> dict[str, str]:
    """What Ray reads from the environment on a cluster of this process alone."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nobody else can come in; without this Ray writes a token into the home directory.
        "RAY_AUTH_MODE": "disabled",
        # All of a run's processes may start at once; Ray would warn of them line by line.
        "RAY_worker_maximum_startup_concurrency": "8",
        # Keep idle processes: re-importing costs each pass over the data seconds.
        "RAY_num_workers_soft_limit": "16",
        "RAY_idle_worker_killing_time_threshold_ms": "600000",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # No node of it can be taken away with notice.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    # A private cluster has no dashboard (a dozen processes). Ray Train's clean-up actor asks for one all the same:
    # refused at once, it ends with the training; left to search, it holds up the end of every training for 12 s.
    # Where there is a dashboard, the actor must ask this one: left to search, it takes the newest cluster of the
    # machine, does not find its training there, and takes that training's resources away.
    api = _NOWHERE if dashboard_port is None else f"http://127.0.0.1:{dashboard_port}"
    return _unless_set(settings) | {"RAY_API_SERVER_ADDRESS": api}


def _unless_set(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings, except where the environment has others already."""
    return {name: os.environ.get(name, value) for name, value in settings.items()}


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the block runs."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _free_port() -> int:
    """A port of this machine that nobody listens on, outside 10002 to 19999, which Ray gives to its processes."""
    while True:
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            port = int(asked.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


@contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that the first SIGTERM (a spot instance's notice, a stopped job) sets; the second one interrupts.

    Inside `ray_session`, which would take the signal for itself; in the main thread.
    """
    event = threading.Event()

    def told(_signal: int, _frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def polled(look: Callable[[], object], *, every_seconds: float) -> Iterator[None]:
    """Call `look` again and again from a thread while the block runs, and once more when it ends well."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_seconds):
            look()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
    look()
