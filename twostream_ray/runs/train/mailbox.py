"""Mailbox actor of a training run: workers post progress events, and get the driver's request in reply."""

from __future__ import annotations

import time
from typing import Literal

from twostream_ray.runs.train.events import Event

Request = Literal["continue", "checkpoint", "stop"]
"""What is requested of a run: to continue; to save a checkpoint, because one of its nodes is being drained; or to save
one and stop."""

_DRAIN_POLL_SECONDS = 1.0
"""How often Ray is asked which nodes are draining."""


class Mailbox:
    """A Ray actor on the driver's node. This module imports no torch, which would take its process seconds."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop_requested = False
        self._node_of_rank: dict[int, str] = {}
        self._draining: frozenset[str] = frozenset()
        self._polled_at = 0.0

    def join(self, rank: int, *, world_size: int, node: str) -> None:
        """Record the node that a worker runs on."""
        kept = {other: on for other, on in self._node_of_rank.items() if other < world_size}
        self._node_of_rank = kept | {rank: node}

    def post(self, event: Event) -> Request:
        """Add an event; returns what is requested of the run."""
        self._events.append(event)
        if self._stop_requested:
            return "stop"
        return "continue" if self._draining_nodes().isdisjoint(self._node_of_rank.values()) else "checkpoint"

    def stop(self) -> None:
        """Request the run to save a checkpoint and stop."""
        self._stop_requested = True

    def take(self) -> list[Event]:
        """Remove and return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _draining_nodes(self) -> frozenset[str]:
        """Nodes that Ray is draining, as after a spot instance's notice.

        Ray Train would start an actor to watch for them with every group of workers, which would wait for its imports.
        """
        from twostream_ray.runs.cluster.ray_private import draining_nodes

        if time.monotonic() - self._polled_at > _DRAIN_POLL_SECONDS:
            self._draining, self._polled_at = draining_nodes(), time.monotonic()
        return self._draining
