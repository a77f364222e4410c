"""Process identity beyond the PID: start time, boot id and PID namespace, as PIDs are reused and per container."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine or container within which process ids are comparable."""

    host: str
    """Name of the host, or of the container."""
    boot: str
    """Unique for each start of the machine."""
    namespace: str
    """Process namespace: that of a container, or the machine's own."""


@cache
def this_machine() -> Machine:
    """The machine or container of this process."""
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return Machine(host=socket.gethostname(), boot=boot, namespace=namespace)


def started_at(process: int) -> int | None:
    """Start time of a local process in clock ticks since boot; None if it cannot be read, 0 for a zombie."""
    try:
        # The fields after the name, which may contain blanks and brackets: state, parent, ...
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def is_gone(process: int, *, start: int) -> bool:
    """Whether a process (above 0) of this machine that began at `start` has ended; one that cannot be seen has not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # there, and another user's
    began = started_at(process)
    return began is not None and began != start
