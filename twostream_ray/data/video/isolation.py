"""Process isolation: untrusted videos are decoded in sandboxed child processes, whose crash or hang is contained.

Children stay warm in a pool. Only lengths, JSON and encoded bytes come back from them: nothing is unpickled.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.captions import Caption
from twostream_ray.data.video.confined_process import ConfinedProcess
from twostream_ray.data.video.decoder_pool import DecoderPool
from twostream_ray.data.video.isolated_child import END, ERROR, ERRORS, HEARTBEAT, LENGTH, send
from twostream_ray.data.video.prepare import Source
from twostream_ray.data.video.raw_video import open_video
from twostream_ray.data.video.windows import Window
from twostream_ray.errors import DecodeError, TwoStreamError, VideoError

_SILENCE_S = 60.0
"""A child without a heartbeat for this long hangs: it sends one after every packet and frame."""
_SECONDS, _SECONDS_PER_FRAME = 600.0, {"dis": 0.25}
_SECONDS_PER_SLOW_FRAME = 10.0
"""What a clip may take in all, many times what it does: a second of TV-L1 on a free core, 0.01 of DIS."""
_USUAL_FRAMES, _USUAL_SIDE_PX = 10_000, 256
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""Signals sent by the system (out of memory) or an administrator, so not caused by the video: it is tried again."""
_MOST_MEMORY_BYTES = 4 << 30
"""Address space for one video beyond what the child has at rest: one of 4K takes 0.8 GB, one of 8K in HEVC 1.2 GB."""
_BYTES_PER_FRAME = 32 << 10
_CHILD = "from twostream_ray.data.video.isolated_child import answer_requests; answer_requests()"


_Result = TypeVar("_Result")


def prepare_in_subprocess(
    source: bytes | Source,
    contract: FlowContract,
    *,
    name: str,
    max_frames: int | None = None,
    max_seconds: float | None = None,
    prove: bool = False,
    pool: Pool | None = None,
    cancelled: threading.Event | None = None,
) -> EncodedClip:
    """`prepare.prepare_clip` in a child process; with `prove` the result is shown to seek exactly.

    Threads get a child each, as many as their pool has, by default that of this process. When `cancelled` is set, the
    child is ended.

    Raises:
        DecodeError: the video cannot be decoded whole, or its decoding crashed or hung.
        EmptyClipError, TooLongError: it has too few frames, too many, or takes too long to play.
        CancelledError: it was cancelled.
    """
    options = {"max_frames": max_frames, "max_seconds": max_seconds, "prove": prove}

    def prepare(child: _Child) -> EncodedClip:
        values, parts = child.ask(source, contract, name=name, **options)
        return EncodedClip(video=parts[0], flow=parts[1:], notes=tuple(values.pop("notes")), **values)

    try:
        return _in_child(prepare, pool=pool, cancelled=cancelled)
    except _KilledError:
        return _in_child(prepare, pool=pool, cancelled=cancelled)


def _in_child(
    work: Callable[[_Child], _Result], *, pool: Pool | None = None, cancelled: threading.Event | None = None
) -> _Result:
    with (pool or _pool).acquire(cancelled) as child:
        try:
            child.watch_for(cancelled)
            return work(child)
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

    A child has no other work until it is at its end or closed.

    Raises:
        DecodeError: the video cannot be decoded to its end, or its decoding crashed or hung; windows before were given.
        EmptyClipError: it has fewer than two frames.
    """
    with _pool.acquire() as child:
        try:
            child.watch_for(None)
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
    """`captions.write_captioned` in the child process; returns the number of frames.

    Raises:
        DecodeError: the video cannot be decoded to its end, or its decoding crashed or hung.
    """
    spoken = [(one.start_seconds, one.end_seconds, one.top) for one in captions]

    def draw(child: _Child) -> int:
        values, _ = child.ask(
            Source(video=path), FlowContract(), name=name, max_frames=1_000_000, captions=spoken, target=target
        )
        return int(values["num_frames"])

    return _in_child(draw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a video takes to ingest, from its first frames."""

    frames: int
    """Frames of the whole video, by its header or its packets."""
    seconds_per_frame: float
    """Time of decoding, flow and encoding."""
    bytes_per_frame: float
    """Encoded size of both streams."""


def probe_in_subprocess(source: bytes | Source, contract: FlowContract, *, name: str, max_frames: int) -> Cost:
    """Measure, in the child process, what the first frames of a video cost.

    Raises:
        DecodeError, EmptyClipError: the video cannot be decoded that far.
        TooLongError: it has more than max_frames.
    """
    return _in_child(lambda child: Cost(**child.ask(source, contract, name=name, max_frames=max_frames, probe=True)[0]))


def decoder_pool(most: int | None = None) -> Pool:
    """A pool of children beside that of this process, at most so many, by default one for each of its processors."""
    return DecoderPool(_Child, most=most)


class _Child:
    """A process that decodes, and the pipes to it."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process = ConfinedProcess(_CHILD)
        self.pid = self._process.pid
        """Its process id."""
        atexit.register(self.end)

    @property
    def is_usable(self) -> bool:
        """Whether it is there, and this process is no fork of its owner."""
        return self._owner == os.getpid() and self._process.status is None

    def watch_for(self, cancelled: threading.Event | None) -> None:
        """Give up waiting for it once this is set."""
        self._process.cancelled = cancelled

    def end(self) -> None:
        """Stop the process; the next video gets a new one."""
        if self._owner == os.getpid():
            atexit.unregister(self.end)
            self._process.end()

    def ask(
        self, source: bytes | Source, contract: FlowContract, *, name: str, **options: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Values and encoded parts of the one answer that there is."""
        (answer,) = self.answers(source, contract, name=name, **options)
        return answer

    def answers(
        self,
        source: bytes | Source,
        contract: FlowContract,
        *,
        name: str,
        target: Path | None = None,
        **options: Any,
    ) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
        """Values and encoded parts of each of the child's answers, as they come; it may write to the target."""
        process, read = self._process, self._process.read
        seconds = _seconds_for(contract, options["max_frames"])
        try:
            process.wait_until_ready()
            process.allow_time(seconds, silence_s=_SILENCE_S)
            self._request(source, contract, name=name, target=target, **options)
            while True:
                while (kind := read(1)) == HEARTBEAT:
                    pass
                if kind == END:
                    return
                answer = json.loads(read(LENGTH.unpack(read(LENGTH.size))[0]))
                if kind == ERROR:
                    raise ERRORS[answer["kind"]](answer["message"])
                sizes = answer.pop("sizes")
                yield answer, [read(size) for size in sizes]
                # The consumer's time between two answers does not count.
                process.allow_time(seconds, silence_s=_SILENCE_S)
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            self.end()
            raise self._fault(error, name=name) from None

    def _fault(self, error: Exception, *, name: str) -> TwoStreamError:
        status = self._process.status or 0
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        if -status in _FROM_OUTSIDE and not isinstance(error, TimeoutError):
            return _KilledError(f"{name}: the decoder crashed ({how})")
        if not self._process.is_ready:
            # No video is to blame.
            return TwoStreamError(f"the process that decodes videos does not start ({how}): its output above says why")
        if isinstance(error, TimeoutError):
            return DecodeError(f"{name}: {error}")
        if -status == signal.SIGXCPU:
            return DecodeError(f"{name}: decoding exceeds the limit of CPU time: cut it into clips")
        return DecodeError(f"{name}: the decoder crashed ({how})")

    def _request(
        self, source: bytes | Source, contract: FlowContract, *, name: str, target: Path | None, **options: object
    ) -> None:
        source = Source(video=source) if isinstance(source, bytes) else source
        images = source.frames
        if isinstance(source.video, bytes):
            images = (source.video,)
        parts = [*images, *(image for field in source.flow or () for image in field)]
        request: dict[str, Any] = {
            "contract": contract.to_dict(),
            "name": name,
            "sizes": [len(part) for part in parts],
            "is_file": isinstance(source.video, Path),
            "has_target": target is not None,
            "frames": None if source.video is not None else len(source.frames),
            "fields": None if source.flow is None else len(source.flow),
            **options,
        }
        process = self._process
        frames = request["max_frames"] or 0
        process.allow_memory(_MOST_MEMORY_BYTES + 3 * sum(request["sizes"]) + _BYTES_PER_FRAME * frames)
        process.allow_writing(target is not None)
        # The child can open no file: it gets descriptors.
        if isinstance(source.video, Path):
            with open_video(source.video, name=name) as file:
                process.send_file(file)
        if target is not None:
            with target.open("wb") as file:
                process.send_file(file)
        send(process.stdin, json.dumps(request).encode())
        for part in parts:
            process.stdin.write(part)
        process.stdin.flush()


def _seconds_for(contract: FlowContract, max_frames: Any) -> float:
    frame = _SECONDS_PER_FRAME.get(contract.algorithm, _SECONDS_PER_SLOW_FRAME)
    area = max(1.0, (contract.short_side_px / _USUAL_SIDE_PX) ** 2)
    return _SECONDS + frame * area * (max_frames or _USUAL_FRAMES)


class _KilledError(DecodeError):
    """The child was ended from outside."""


Pool = DecoderPool[_Child]
"""Of the children that decode."""
_pool: Pool = DecoderPool(_Child)
"""That of this process."""
