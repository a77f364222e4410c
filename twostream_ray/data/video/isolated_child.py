"""Child side of process isolation: decodes untrusted videos for `isolation` and answers over a pipe.

A request is a length, JSON, and the parts whose sizes it names; answers are a letter each, JSON and parts. Meanwhile it
says that it lives.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, BinaryIO

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.captions import Caption, write_captioned
from twostream_ray.data.video.clips import prove_seeking
from twostream_ray.data.video.confined_process import accept_confinement, receive_file
from twostream_ray.data.video.prepare import Source, prepare_clip
from twostream_ray.data.video.raw_video import FrameStream, refuse_more_frames
from twostream_ray.data.video.windows import prepare_windows
from twostream_ray.errors import DecodeError, EmptyClipError, TooLongError, VideoError

_PROBED_FRAMES = 12
LENGTH = struct.Struct("<Q")
"""Before every JSON text: its bytes."""
HEARTBEAT, CLIP, ERROR, END = b".", b"C", b"E", b"Z"
"""Type bytes of answers: the child is alive; a clip; the video is unusable; end of the answers."""
ERRORS: dict[str, type[VideoError]] = {kind.__name__: kind for kind in (DecodeError, EmptyClipError, TooLongError)}
"""What may be wrong with a video, by the name that an answer has."""


def send(pipe: BinaryIO, content: bytes | memoryview) -> None:
    """Write a text behind its length."""
    pipe.write(LENGTH.pack(len(content)))
    pipe.write(content)


def answer_requests() -> None:
    """Main loop of the child, until its parent closes the pipe or exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the answers.
    os.dup2(2, 1)
    files = accept_confinement(answers)  # before there is another thread
    threading.Thread(target=_end_with_parent, daemon=True).start()
    requests = sys.stdin.buffer
    while header := requests.read(LENGTH.size):
        request = json.loads(requests.read(LENGTH.unpack(header)[0]))
        parts = [requests.read(size) for size in request["sizes"]]
        file, target = (receive_file(files) if request[key] else None for key in ("is_file", "has_target"))
        try:
            source = _source(parts, request, file=file)
            for values, fields in _answers(source, request, target=target, beat=_Beat(answers)):
                answers.write(CLIP)
                send(answers, json.dumps(values | {"sizes": [len(field) for field in fields]}).encode())
                for field in fields:
                    answers.write(field)
                answers.flush()
        except Exception as error:  # noqa: BLE001  whatever a damaged video brings about
            kind = type(error).__name__
            message = str(error) if kind in ERRORS else f"{request['name']}: {kind} while decoding: {error}"
            answers.write(ERROR)
            send(answers, json.dumps({"kind": kind if kind in ERRORS else "DecodeError", "message": message}).encode())
        else:
            answers.write(END)
        answers.flush()
        for lent in filter(None, (file, target)):
            with suppress(OSError):
                lent.close()


def _end_with_parent() -> None:
    """Exit when the parent does: a hanging decoder would outlive it."""
    poll = select.poll()
    poll.register(0, 0)  # reports the other end's closing whatever is asked for
    poll.poll()
    os._exit(1)


class _Beat:
    """Sends heartbeats, at most ten per second."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._last = pipe, 0.0

    def __call__(self) -> None:
        if time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            self._pipe.write(HEARTBEAT)
            self._pipe.flush()


def _source(parts: list[bytes], request: dict[str, Any], *, file: BinaryIO | None) -> Source:
    fields = len(parts) - 2 * (request["fields"] or 0)
    flow = None if request["fields"] is None else tuple(zip(parts[fields::2], parts[fields + 1 :: 2], strict=True))
    if file is not None:
        return Source(video=file, flow=flow)
    if request["frames"] is None:
        return Source(video=parts[0], flow=flow)
    return Source(frames=tuple(parts[:fields]), flow=flow)


def _answers(
    source: Source, request: dict[str, Any], *, target: BinaryIO | None, beat: Callable[[], None]
) -> Iterator[tuple[dict[str, Any], list[bytes | memoryview]]]:
    contract, name = FlowContract.from_dict(request["contract"]), request["name"]
    if request.get("probe"):
        yield _costs(source, contract, name=name, max_frames=request["max_frames"]), []
    elif target is not None:
        assert source.video is not None  # noqa: S101  (only files are asked for so)
        captions = [
            Caption(start_seconds=start, end_seconds=end, top=tuple((name, share) for name, share in top))
            for start, end, top in request["captions"]
        ]
        num_frames = write_captioned(source.video, target, captions, name=name, on_progress=beat)
        target.flush()
        yield {"num_frames": num_frames}, []
    elif request.get("every_seconds") is not None:
        assert source.video is not None  # noqa: S101  (only files are asked for so)
        spans = {key: request[key] for key in ("every_seconds", "window_seconds")}
        for window in prepare_windows(source.video, contract, name=name, on_progress=beat, **spans):
            values, parts = _encoded(window.clip)
            yield values | {"start_frame": window.start_frame}, parts
    else:
        limits = {"max_frames": request["max_frames"], "max_seconds": request["max_seconds"]}
        clip = prepare_clip(source, contract, name=name, **limits, on_progress=beat)
        if request["prove"]:
            prove_seeking(clip.video or b"", num_frames=clip.num_frames, on_progress=beat)
        yield _encoded(clip)


def _encoded(clip: EncodedClip) -> tuple[dict[str, Any], list[bytes | memoryview]]:
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
