"""Object pool of decoder processes: warm children, each used by one thread at a time, to decode videos in parallel.

Children are started on demand; a process that decodes one video at a time has one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

_LOOK_S = 0.25
"""Between two looks at whether the work is still wanted."""


class Child(Protocol):
    """A process that decodes."""

    @property
    def is_usable(self) -> bool:
        """Whether it is there and this process's own."""
        ...

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    def end(self) -> None:
        """Stop it."""
        ...


_Child = TypeVar("_Child", bound=Child)


class DecoderPool(Generic[_Child]):
    """A bounded pool of children of this process; after a fork, the new process has a pool of its own."""

    def __init__(self, make: Callable[[], _Child], *, most: int | None = None) -> None:
        """Start none yet.

        Args:
            make: starts a child.
            most: children at a time; by default as many as this process has processors.
        """
        self._make, self.most = make, most or len(os.sched_getaffinity(0))
        self._begin()

    def _begin(self) -> None:
        self._owner, self._changed = os.getpid(), threading.Condition()
        self._idle: list[_Child] = []
        self._lent: list[_Child] = []
        self._starting = 0
        self._is_closed = False

    @property
    def ids(self) -> list[int]:
        """Process ids of the children, those at work last."""
        self._after_fork()
        with self._changed:
            return [child.pid for child in [*self._idle, *self._lent] if child.is_usable]

    @contextmanager
    def acquire(self, cancelled: threading.Event | None = None) -> Iterator[_Child]:
        """Acquire a child for the block, the most recently used one, waiting until one is free.

        Raises:
            CancelledError: the work was no longer wanted while it waited.
        """
        self._after_fork()
        child = self._take(cancelled)
        try:
            yield child
        finally:
            with self._changed:
                self._lent.remove(child)
                stays = child.is_usable and not self._is_closed
                if stays:
                    self._idle.append(child)
                self._changed.notify()
            if not stays:
                child.end()

    def close(self) -> None:
        """End the children; those at work with their work."""
        with self._changed:
            self._is_closed = True
        self.end_idle()

    def end_idle(self) -> None:
        """End the children that wait; the next video gets a new one."""
        self._after_fork()
        with self._changed:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _after_fork(self) -> None:
        if self._owner != os.getpid():
            self._begin()

    def _take(self, cancelled: threading.Event | None) -> _Child:
        with self._changed:
            while len(self._lent) + self._starting >= self.most:
                if cancelled is not None and cancelled.is_set():
                    raise CancelledError
                self._changed.wait(None if cancelled is None else _LOOK_S)
            while self._idle:
                child = self._idle.pop()
                if child.is_usable:
                    self._lent.append(child)
                    return child
            self._starting += 1
        try:
            child = self._make()
        except BaseException:
            with self._changed:
                self._starting -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._starting -= 1
            self._lent.append(child)
        return child
