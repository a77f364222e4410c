"""Process isolation: bytes from outside are decoded in a child process, which may crash or hang alone.

A process keeps one warm child. Only lengths, JSON and encoded bytes come back from it: nothing is unpickled.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.clips import prove_seeking
from twostream_ray.data.video.prepare import Source, prepare_clip
from twostream_ray.data.video.raw_video import FrameStream, refuse_more_frames
from twostream_ray.errors import DecodeError, EmptyClipError, TooLongError, VideoError

_SILENCE_S = 60.0
"""A child that says nothing for so long hangs: it says something after every packet and frame."""
_SECONDS, _SECONDS_PER_FRAME = 600.0, {"dis": 0.25}
_SECONDS_PER_SLOW_FRAME = 10.0
"""What a clip may take in all, many times what it does: a second of TV-L1 on a free core, 0.01 of DIS."""
_USUAL_FRAMES, _USUAL_SIDE_PX = 10_000, 256
_MOST_MEMORY_BYTES = 4 << 30
"""Address space for one video beyond what the child has at rest: one of 4K takes 0.8 GB, one of 8K in HEVC 1.2 GB."""
_BYTES_PER_FRAME = 32 << 10
_PROBED_FRAMES = 12
_LENGTH = struct.Struct("<Q")
_BEAT, _CLIP, _ERROR = b".", b"C", b"E"
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""Signals that no decoder raises: the system lacked memory, or somebody ends processes. The video is not to blame."""
_ERRORS: dict[str, type[VideoError]] = {kind.__name__: kind for kind in (DecodeError, EmptyClipError, TooLongError)}
_NEEDED = ("PATH", "HOME", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "LANG", "LC_ALL")
"""Where programs and libraries are, and how texts are written."""
_CHILD = "from twostream_ray.data.video.isolation import answer_requests; answer_requests()"


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
        """Values and encoded parts that the child answers with."""
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
        self._seconds = _seconds_for(contract, options["max_frames"])
        self._deadline = time.monotonic() + self._seconds
        try:
            _send(stdin, json.dumps(request).encode())
            for part in parts:
                stdin.write(part)
            stdin.flush()
            while (kind := self._read(1)) == _BEAT:
                pass
            answer = json.loads(self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]))
            if kind == _ERROR:
                raise _ERRORS[answer["kind"]](answer["message"])
            sizes = answer.pop("sizes")
            return answer, [self._read(size) for size in sizes]
        except (_Gone, BrokenPipeError) as error:
            self.end()
            status = self._process.returncode
            if isinstance(error, _HangError):
                raise DecodeError(f"{name}: {error}") from None
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            fault = _KilledError if -status in _FROM_OUTSIDE else DecodeError
            raise fault(f"{name}: the decoder crashed ({how})") from None

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


def _send(pipe: BinaryIO, content: bytes | memoryview) -> None:
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)


def answer_requests() -> None:
    """What the child does until its parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the answers.
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    requests = sys.stdin.buffer
    while header := requests.read(_LENGTH.size):
        request = json.loads(requests.read(_LENGTH.unpack(header)[0]))
        parts = [requests.read(size) for size in request["sizes"]]
        _limit_memory(request)
        try:
            values, fields = _answer(_source(parts, request), request, beat=_Beat(answers))
        except Exception as error:  # noqa: BLE001  whatever a damaged video brings about
            kind = type(error).__name__
            message = str(error) if kind in _ERRORS else f"{request['name']}: {kind} while decoding: {error}"
            answers.write(_ERROR)
            _send(
                answers, json.dumps({"kind": kind if kind in _ERRORS else "DecodeError", "message": message}).encode()
            )
        else:
            answers.write(_CLIP)
            _send(answers, json.dumps(values | {"sizes": [len(field) for field in fields]}).encode())
            for field in fields:
                answers.write(field)
        answers.flush()


def _limit_memory(request: dict[str, Any]) -> None:
    """What one video asks for beyond measure is refused to the decoder, not taken from the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = _MOST_MEMORY_BYTES + 3 * sum(request["sizes"]) + _BYTES_PER_FRAME * (request.get("max_frames") or 0)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _end_with_parent() -> None:
    """A decoder that hangs would outlive a parent that is gone."""
    poll = select.poll()
    poll.register(0, 0)  # reports the other end's closing whatever is asked for
    poll.poll()
    os._exit(1)


class _Beat:
    """Says that the child lives, at most ten times a second."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._last = pipe, 0.0

    def __call__(self) -> None:
        if time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            self._pipe.write(_BEAT)
            self._pipe.flush()


def _source(parts: list[bytes], request: dict[str, Any]) -> Source:
    fields = len(parts) - 2 * (request["fields"] or 0)
    flow = None if request["fields"] is None else tuple(zip(parts[fields::2], parts[fields + 1 :: 2], strict=True))
    if request["path"] is not None:
        return Source(video=Path(request["path"]), flow=flow)
    if request["frames"] is None:
        return Source(video=parts[0], flow=flow)
    return Source(frames=tuple(parts[:fields]), flow=flow)


def _answer(
    source: Source, request: dict[str, Any], *, beat: Callable[[], None]
) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    contract, name = FlowContract.from_dict(request["contract"]), request["name"]
    if request.get("probe"):
        return _costs(source, contract, name=name, max_frames=request["max_frames"]), []
    clip = prepare_clip(source, contract, name=name, max_frames=request["max_frames"], on_progress=beat)
    if request["prove"]:
        prove_seeking(clip.video or b"", num_frames=clip.num_frames, on_progress=beat)
    values = {key: getattr(clip, key) for key in ("num_frames", "height", "width", "fps", "notes")}
    return values, [clip.video or b"", *(clip.flow or ())]


def _costs(source: Source, contract: FlowContract, *, name: str, max_frames: int) -> dict[str, Any]:
    frames = len(source.frames)
    if source.video is not None:
        with closing(FrameStream(source.video, name=name, max_frames=max_frames)) as stream:
            frames = stream.announced
    refuse_more_frames(frames, max_frames, name=name)
    started = time.perf_counter()
    clip = prepare_clip(source, contract, name=name, first_frames=_PROBED_FRAMES)
    seconds = time.perf_counter() - started
    parts = [clip.video or b"", *(clip.flow or ())]
    return {
        "frames": frames,
        "seconds_per_frame": seconds / clip.num_frames,
        "bytes_per_frame": sum(map(len, parts)) / clip.num_frames,
    }
