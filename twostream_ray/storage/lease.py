"""Leases (Gray and Cheriton 1989): which process is writing to a run's or search's folder, or to a shard set.

A lease is the file `lease.json` in the folder: user, host, process, since when. Its holder renews it every 10 s. One
whose process is gone on this machine, or that is not renewed for a minute, is taken over.

Guarantees. On a local disk exactly one process holds a folder, however the one before was killed. On a network disk
with flock likewise, except for a holder that was stopped for more than a minute (a suspended machine) and wakes up: it
learns within 10 s that it has lost the folder. On s3:// likewise where the store has conditional writes
(`If-None-Match`: AWS, MinIO, Ceph, Swift); on one that has not, and whenever a stale lease is taken over there, two
that begin within the same second could both pass if the store also shows a write later than that.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twostream_ray import storage
from twostream_ray.errors import LeaseError, StorageError
from twostream_ray.processes import is_gone, started_at, this_machine
from twostream_ray.storage import json_files
from twostream_ray.storage.json_files import COUNT, record
from twostream_ray.storage.locks import locked

FILE = "lease.json"
"""Name of the lease within its folder; there only while a process holds it."""

_RENEW_S = 10.0
_STALE_S = 60.0
_CLOCKS_DIFFER_S = 60.0
"""Maximum assumed clock skew between two hosts."""
_CONSISTENCY_S = 1.0
"""Time after which a store's reads are assumed to be consistent."""
_POLL_S = 1.0
_LIMIT_BYTES = 1 << 16

_NAME = {"type": "string", "maxLength": 300}
_TIME = {"type": "number", "minimum": 0, "maximum": 1e11}
_SCHEMA = record(
    {
        "key": _NAME,
        "work": {"type": "string", "maxLength": 2000},
        "user": _NAME,
        "host": _NAME,
        "machine": _NAME,
        "process": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "process_start": COUNT,
        "since": _TIME,
        "renewed": _TIME,
    }
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The holder of a lease."""

    key: str
    """Unique id of the lease."""
    work: str
    """Description of the work, such as 'run "x"'."""
    user: str
    """Name of the user."""
    host: str
    """Name of the host."""
    machine: str
    """Boot id and PID namespace of the host: process ids are comparable only within one."""
    process: int
    """Process id."""
    process_start: int
    """Start time of the process in clock ticks since boot, as process ids are reused."""
    since: float
    """Unix time in s at which the lease was acquired."""
    renewed: float
    """Unix time in s of the last renewal, by the holder's clock."""

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"{self.user} on {self.host} (process {self.process}, {self.work}) since {since}"


class Lease:
    """A lease that is held."""

    def __init__(self, uri: str, mine: Holder) -> None:
        self.uri, self._mine = uri, mine
        self.lost_to: Holder | None = None
        """The holder that has taken it over, if any."""

    def loss(self) -> LeaseError | None:
        """The error to raise if another process has taken the folder over, otherwise None."""
        if self.lost_to is None:
            return None
        return LeaseError(
            f"{self._mine.work} was stopped: {self.uri} was not renewed for {_STALE_S:.0f} s and was taken over "
            f"by {self.lost_to}: wait for it, then run the same command again"
        )


@contextmanager
def held(uri: str, *, work: str, way_out: str, when_lost: Callable[[], object] | None = None) -> Iterator[Lease]:
    """Hold the lease of a directory or s3:// prefix while the block runs, for some `work` ('run "x"').

    `when_lost` is called, from another thread, if another process takes the folder over; the block must then end, and
    LeaseError is raised after it.

    Raises:
        LeaseError: another process holds it; names user, host, process and since when, and ends with the `way_out`.
        StorageError: it cannot be written.
    """
    uri = storage.absolute(uri)
    file: _LeaseFile = _S3LeaseFile(uri) if storage.is_s3(uri) else _LocalLeaseFile(uri)
    mine = _taken(file, uri, work=work, way_out=way_out)
    lease, ended = Lease(uri, mine), threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_S):
            with suppress(StorageError, OSError, LeaseError):  # retried at the next renewal
                now = replace(mine, renewed=time.time())
                done, found = file.compare_and_swap(
                    now, expected=lambda holder: holder is None or holder.key == mine.key
                )
                if not done and found is not None and not ended.is_set():
                    lease.lost_to = found
                    if when_lost is not None:
                        when_lost()
                    return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    except BaseException as error:
        if (loss := lease.loss()) is not None:
            raise loss from error
        raise
    finally:
        ended.set()
        thread.join(timeout=_RENEW_S)
        with suppress(StorageError, OSError, LeaseError):
            file.remove(mine)
    if (loss := lease.loss()) is not None:
        raise loss


def holder_of(uri: str) -> Holder | None:
    """The holder of a folder's lease at the moment, or None.

    Raises:
        LeaseError: the lease is damaged.
        StorageError: it cannot be read.
    """
    uri = storage.join(storage.absolute(uri), FILE)
    if not storage.exists(uri):
        return None
    found = _parsed(storage.read_bytes(uri, limit_bytes=_LIMIT_BYTES), uri)
    return None if found is None or _is_gone(found) else found


def _taken(file: _LeaseFile, uri: str, *, work: str, way_out: str) -> Holder:
    """Acquire the lease, waiting for it to expire if its holder is on another machine."""
    watched: tuple[Holder, float] | None = None
    while True:
        now = time.time()
        mine = Holder(
            key=uuid.uuid4().hex,
            work=work[:1000],
            user=_user(),
            host=this_machine().host[:300],
            machine=_machine(),
            process=os.getpid(),
            process_start=started_at(os.getpid()) or 0,
            since=now,
            renewed=now,
        )
        stale = watched[0] if watched is not None and time.monotonic() - watched[1] >= _STALE_S else None

        def can_be_taken(found: Holder | None, *, stale: Holder | None = stale) -> bool:
            return found is None or found == stale or _is_gone(found)

        done, found = file.compare_and_swap(mine, expected=can_be_taken)
        if done:
            if found is not None:
                why = "whose process is gone" if _is_on_this_machine(found) else "and did not renew it"
                _log.warning("%s takes over %s, which was held by %s, %s", work, uri, found, why)
            return mine
        if found is None:
            continue  # it was released at this moment
        if _is_on_this_machine(found) or (watched is not None and watched[0] != found):
            raise LeaseError(f"{work} needs exclusive use of {uri}, which is in use by {found}: {way_out}")
        if watched is None:
            watched = (found, time.monotonic())
            _log.warning("%s waits up to %.0f s to see whether %s is held: by %s", work, _STALE_S, uri, found)
        time.sleep(_POLL_S)


class _LeaseFile:
    """Compare-and-swap on the lease file; implemented for local disks and for object stores."""

    def compare_and_swap(
        self, mine: Holder, *, expected: Callable[[Holder | None], bool]
    ) -> tuple[bool, Holder | None]:
        """Write `mine` if the holder is as expected; returns whether it was written, and the holder there was or is."""
        raise NotImplementedError

    def remove(self, mine: Holder) -> None:
        """Remove the lease if it is still mine."""
        raise NotImplementedError


class _LocalLeaseFile(_LeaseFile):
    """A file that is read and written under flock, so that one process at a time compares and swaps."""

    def __init__(self, uri: str) -> None:
        self._folder = Path(uri)
        self._path = self._folder / FILE
        self._made = False

    def compare_and_swap(
        self, mine: Holder, *, expected: Callable[[Holder | None], bool]
    ) -> tuple[bool, Holder | None]:
        try:
            if not self._folder.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._made = True
            with locked(self._path, keep=True, required=False) as file:
                found = _parsed(os.pread(file.fileno(), _LIMIT_BYTES, 0), str(self._path))
                if not expected(found):
                    return False, found
                content = _content(mine)
                os.pwrite(file.fileno(), content, 0)
                os.ftruncate(file.fileno(), len(content))
                return True, found
        except OSError as error:
            raise StorageError(
                f"{mine.work} cannot write into {self._folder} ({error.strerror or error}): check the "
                "permissions of the path and the free space of the disk"
            ) from error

    def remove(self, mine: Holder) -> None:
        with locked(self._path, keep=True, required=False) as file:
            found = _parsed(os.pread(file.fileno(), _LIMIT_BYTES, 0), str(self._path))
            if found is None or found.key == mine.key:
                self._path.unlink(missing_ok=True)
        if self._made:
            with suppress(OSError):  # one with other files stays
                self._folder.rmdir()


class _S3LeaseFile(_LeaseFile):
    """An object created by a conditional write (If-None-Match) and read back after a moment."""

    def __init__(self, uri: str) -> None:
        self._uri = storage.join(uri, FILE)

    def compare_and_swap(
        self, mine: Holder, *, expected: Callable[[Holder | None], bool]
    ) -> tuple[bool, Holder | None]:
        before = self._read()
        if not expected(before):
            return False, before
        if before is not None and before.key == mine.key:
            storage.write_bytes(self._uri, _content(mine))
            return True, before
        if before is not None:
            storage.delete(self._uri)
        storage.write_new(self._uri, _content(mine))
        time.sleep(_CONSISTENCY_S)
        now = self._read()
        return (True, before) if now is not None and now.key == mine.key else (False, now)

    def remove(self, mine: Holder) -> None:
        found = self._read()
        if found is not None and found.key == mine.key:
            storage.delete(self._uri)

    def _read(self) -> Holder | None:
        if not storage.exists(self._uri):
            return None
        return _parsed(storage.read_bytes(self._uri, limit_bytes=_LIMIT_BYTES), self._uri)


def _content(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=1, sort_keys=True) + "\n").encode()


def _parsed(content: bytes, where: str) -> Holder | None:
    """Parse the holder; None for an empty file, whose writer was killed before it wrote."""
    if not content:
        return None
    values: dict[str, Any] = json_files.parse_json(
        content,
        _SCHEMA,
        where=where,
        what="a lease",
        way_out="delete it if nobody is at work there",
        error=LeaseError,
    )
    # JSON's 12.0 is an integer as well.
    return Holder(**values | {name: int(values[name]) for name in ("process", "process_start")})


def _is_on_this_machine(holder: Holder) -> bool:
    """Whether its process id is one of this machine's."""
    return holder.machine == _machine()


def _is_gone(holder: Holder) -> bool:
    """Whether its process is known to have exited, or its last renewal is too old even allowing for clock skew."""
    if not _is_on_this_machine(holder):
        return time.time() - holder.renewed > _STALE_S + _CLOCKS_DIFFER_S
    return is_gone(holder.process, start=holder.process_start)


def _machine() -> str:
    machine = this_machine()
    return f"{machine.boot or machine.host} {machine.namespace}"


def _user() -> str:
    try:
        return getpass.getuser()[:300]
    except (OSError, KeyError):  # a container's user may have no name
        return f"user {os.getuid()}"
