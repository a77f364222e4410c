"""Locks between the processes of a machine, let go by whoever is killed."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold the lock of a file, which is made if need be, and have it open.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is False.
    """
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file
