"""The board of a training: where workers leave word of their progress, and hear what is wanted of them."""

from __future__ import annotations

import time
from typing import Any, Literal

Request = Literal["", "keep", "stop"]
"""What is wanted of a run: nothing, to keep what it has reached because a machine of it will be taken away, or to keep
it and stop."""

_SECONDS_BETWEEN_LOOKS = 1.0
"""How often Ray is asked which nodes will be taken away."""


class Mailbox:
    """An actor beside the driver; in this light module, or its process would spend seconds on importing torch."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._stops = False
        self._hosts: dict[int, str] = {}
        self._leaving: frozenset[str] = frozenset()
        self._looked = 0.0

    def join(self, rank: int, *, world_size: int, node: str) -> None:
        """A worker says on which node it is."""
        self._hosts = {other: host for other, host in self._hosts.items() if other < world_size} | {rank: node}

    def post(self, event: dict[str, Any]) -> Request:
        """Leave an event; gives what is wanted of the run."""
        self._events.append(event)
        if self._stops:
            return "stop"
        return "" if self._leaving_nodes().isdisjoint(self._hosts.values()) else "keep"

    def stop(self) -> None:
        """Ask the run to keep what it has reached and stop."""
        self._stops = True

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def _leaving_nodes(self) -> frozenset[str]:
        """Nodes that Ray has been told will be taken away (a spot instance's notice, a drain).

        Ray Train would start an actor to watch for them with every group of workers, which then wait for its imports.
        """
        import ray

        if time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._leaving, self._looked = frozenset(ray._private.state.state.get_draining_nodes()), time.monotonic()
        return self._leaving
