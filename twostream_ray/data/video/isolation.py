"""Process isolation: bytes from outside are decoded in a child process, which may crash or hang alone.

A process keeps one warm child. Only lengths, JSON and encoded bytes come back from it: nothing is unpickled.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.captions import Caption
from twostream_ray.data.video.isolated_child import BEAT, END, ERROR, ERRORS, LENGTH, send
from twostream_ray.data.video.prepare import Source
from twostream_ray.data.video.windows import Window
from twostream_ray.errors import DecodeError, VideoError

_SILENCE_S = 60.0
"""A child that says nothing for so long hangs: it says something after every packet and frame."""
_SECONDS, _SECONDS_PER_FRAME = 600.0, {"dis": 0.25}
_SECONDS_PER_SLOW_FRAME = 10.0
"""What a clip may take in all, many times what it does: a second of TV-L1 on a free core, 0.01 of DIS."""
_USUAL_FRAMES, _USUAL_SIDE_PX = 10_000, 256
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""Signals that no decoder raises: the system lacked memory, or somebody ends processes. The video is not to blame."""
_NEEDED = ("PATH", "HOME", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "LANG", "LC_ALL")
"""Where programs and libraries are, and how texts are written."""
_CHILD = "from twostream_ray.data.video.isolated_child import answer_requests; answer_requests()"


def prepare_in_subprocess(
    source: bytes | Source, contract: FlowContract, *, name: str, max_frames: int | None = None, prove: bool = False
) -> EncodedClip:
    """`prepare.prepare_clip` in the child process; with `prove` the result is shown to seek exactly.

    Raises:
        DecodeError: the video cannot be decoded whole, or its decoding crashed or hung.
        EmptyClipError, TooLongError: it has too few frames, or too many.
    """
    with _lock:
        child = _Child.of_this_process()
        try:
            try:
                values, parts = child.ask(source, contract, name=name, max_frames=max_frames, prove=prove)
            except _KilledError:
                child = _Child.of_this_process()
                values, parts = child.ask(source, contract, name=name, max_frames=max_frames, prove=prove)
            notes = tuple(values.pop("notes"))
            return EncodedClip(video=parts[0], flow=parts[1:], notes=notes, **values)
        except VideoError:
            raise
        except BaseException:
            # Whatever was under way (Ctrl-C, a lack of memory): its answer must not be taken for the next one's.
            child.end()
            raise


def windows_in_subprocess(
    path: Path, contract: FlowContract, *, name: str, every_seconds: float, window_seconds: float
) -> Generator[Window]:
    """`windows.prepare_windows` of a file in the child process, which waits while a window is not taken.

    It is the only work of this process's child until it is at its end or closed.

    Raises:
        DecodeError: the video cannot be decoded to its end, or its decoding crashed or hung; windows before were given.
        EmptyClipError: it has fewer than two frames.
    """
    with _lock:
        child = _Child.of_this_process()
        try:
            for values, parts in child.answers(
                Source(video=path),
                contract,
                name=name,
                max_frames=None,
                every_seconds=every_seconds,
                window_seconds=window_seconds,
            ):
                start, notes = values.pop("start_frame"), tuple(values.pop("notes"))
                yield Window(start, EncodedClip(video=parts[0], flow=parts[1:], notes=notes, **values))
        except VideoError:
            raise
        except BaseException:
            child.end()
            raise


def caption_in_subprocess(path: Path, target: Path, captions: Sequence[Caption], *, name: str) -> int:
    """`captions.write_captioned` in the child process; gives the number of frames.

    Raises:
        DecodeError: the video cannot be decoded to its end, or its decoding crashed or hung.
    """
    spoken = [(one.start_seconds, one.end_seconds, one.top) for one in captions]
    with _lock:
        child = _Child.of_this_process()
        try:
            values, _ = child.ask(
                Source(video=path), FlowContract(), name=name, max_frames=1_000_000, captions=spoken, target=str(target)
            )
            return int(values["num_frames"])
        except VideoError:
            raise
        except BaseException:
            child.end()
            raise


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a video takes to ingest, from its first frames."""

    frames: int
    """Frames of the whole video, by its header or its packets."""
    seconds_per_frame: float
    """Time of decoding, flow and encoding."""
    bytes_per_frame: float
    """Encoded size of both streams."""


def probe_apart(source: bytes | Source, contract: FlowContract, *, name: str, max_frames: int) -> Cost:
    """Measure, in the child process, what the first frames of a video cost.

    Raises:
        DecodeError, EmptyClipError: the video cannot be decoded that far.
        TooLongError: it has more than max_frames.
    """
    with _lock:
        child = _Child.of_this_process()
        try:
            return Cost(**child.ask(source, contract, name=name, max_frames=max_frames, probe=True)[0])
        except VideoError:
            raise
        except BaseException:
            child.end()
            raise


_lock = threading.Lock()


def child_environment() -> dict[str, str]:
    """The variables that a decoding child needs: no credentials, whatever they are called."""
    needed = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    # Each thread's own heap would count as address space.
    return needed | {"MALLOC_ARENA_MAX": "2"}


class _Child:
    """A process that decodes, and the pipes to it."""

    _current: _Child | None = None

    @classmethod
    def of_this_process(cls) -> _Child:
        """The warm child, or a new one: none yet, the last one is gone, or this process is a fork of its owner."""
        current = cls._current
        if current is None or current._owner != os.getpid() or current._process.poll() is not None:
            cls._current = current = cls()
        return current

    def __init__(self) -> None:
        package = Path(__file__).resolve().parents[3]
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        self._owner = os.getpid()
        # Not multiprocessing: it would run the user's own script again in the child.
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and code
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment() | {"PYTHONPATH": path},
        )
        atexit.register(self.end)

    def end(self) -> None:
        """Stop the process; the next video gets a new one."""
        if self._owner == os.getpid():
            atexit.unregister(self.end)
            self._process.kill()
            self._process.communicate()

    def ask(
        self, source: bytes | Source, contract: FlowContract, *, name: str, **options: object
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Values and encoded parts of the one answer that there is."""
        (answer,) = self.answers(source, contract, name=name, **options)
        return answer

    def answers(
        self, source: bytes | Source, contract: FlowContract, *, name: str, **options: object
    ) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
        """Values and encoded parts of each of the child's answers, as they come."""
        try:
            self._request(source, contract, name=name, **options)
            while True:
                # The time that whoever takes the answers needs for each is not the child's.
                self._seconds = _seconds_for(contract, options["max_frames"])
                self._deadline = time.monotonic() + self._seconds
                while (kind := self._read(1)) == BEAT:
                    pass
                if kind == END:
                    return
                answer = json.loads(self._read(LENGTH.unpack(self._read(LENGTH.size))[0]))
                if kind == ERROR:
                    raise ERRORS[answer["kind"]](answer["message"])
                sizes = answer.pop("sizes")
                yield answer, [self._read(size) for size in sizes]
        except (_Gone, BrokenPipeError) as error:
            self.end()
            status = self._process.returncode
            if isinstance(error, _HangError):
                raise DecodeError(f"{name}: {error}") from None
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            fault = _KilledError if -status in _FROM_OUTSIDE else DecodeError
            raise fault(f"{name}: the decoder crashed ({how})") from None

    def _request(self, source: bytes | Source, contract: FlowContract, *, name: str, **options: object) -> None:
        source = Source(video=source) if isinstance(source, bytes) else source
        images = source.frames
        if isinstance(source.video, bytes):
            images = (source.video,)
        parts = [*images, *(image for field in source.flow or () for image in field)]
        request = {
            "contract": contract.to_dict(),
            "name": name,
            "sizes": [len(part) for part in parts],
            "path": str(source.video) if isinstance(source.video, Path) else None,
            "frames": None if source.video is not None else len(source.frames),
            "fields": None if source.flow is None else len(source.flow),
            **options,
        }
        stdin: Any = self._process.stdin
        send(stdin, json.dumps(request).encode())
        for part in parts:
            stdin.write(part)
        stdin.flush()

    def _read(self, size: int) -> bytes:
        stdout: Any = self._process.stdout
        parts = []
        while size:
            poll = select.poll()  # select() fails beyond descriptor 1023
            poll.register(stdout, select.POLLIN)
            left = self._deadline - time.monotonic()
            if left < 0:
                raise _HangError(f"a clip that takes at most {self._seconds:.0f} s was wanted, this takes longer")
            if not poll.poll(min(_SILENCE_S, left + 0.1) * 1000):
                if left > _SILENCE_S:
                    raise _HangError(f"the decoder hung, no frame came for {_SILENCE_S:.0f} s")
                continue
            part = os.read(stdout.fileno(), min(size, 1 << 20))
            if not part:
                raise _Gone
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _seconds_for(contract: FlowContract, max_frames: Any) -> float:
    frame = _SECONDS_PER_FRAME.get(contract.algorithm, _SECONDS_PER_SLOW_FRAME)
    area = max(1.0, (contract.short_side_px / _USUAL_SIDE_PX) ** 2)
    return _SECONDS + frame * area * (max_frames or _USUAL_FRAMES)


class _Gone(Exception):  # noqa: N818
    """The child's pipe has ended."""


class _HangError(_Gone):
    """The child says nothing."""


class _KilledError(DecodeError):
    """The child was ended from outside."""
