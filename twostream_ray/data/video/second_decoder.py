"""Cross-check of frame seeking: frames of stored clips fetched by decord are compared with PyAV's.

decord crashes on some files, so it runs in a child process, and only gets clips of shards whose sha256 was found right.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.data.video.confinement import child_environment
from twostream_ray.data.video.watchdog import Watchdog
from twostream_ray.errors import DecodeError

COMPARED_FRAMES = 4
"""Frames of each clip that are compared, in random order."""
_TOLERANCE_LEVELS = 1.0
"""Mean difference of equal frames at most: another version of the colour conversion rounds otherwise."""
_PATIENCE_S = 60.0
_LENGTH = struct.Struct("<Q")
_CHILD = "from twostream_ray.data.video.second_decoder import answer_requests; answer_requests()"


def is_installed() -> bool:
    """Whether decord is there; it has no wheels but for x86-64."""
    return importlib.util.find_spec("decord") is not None


class SecondDecoder:
    """decord in a child process of its own; a context manager, for one thread.

    A clip that decord cannot read is counted in `unread` and no error, for its checksums are right: decord refuses
    frames of 48 px width, for example.
    """

    def __init__(self) -> None:
        self.compared = 0
        """Clips of which decord gave the same frames."""
        self.unread: list[str] = []
        """Clips that it crashed on, hung on or refused."""
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SecondDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def compare(self, name: str, content: bytes | memoryview, num_frames: int) -> None:
        """Compare some frames of a clip.

        Raises:
            DecodeError: decord gives another frame, or PyAV cannot decode the clip.
        """
        indices = np.random.default_rng(num_frames).permutation(num_frames)[:COMPARED_FRAMES].tolist()
        ours = fetch_frames(content, indices, num_frames=num_frames)
        theirs = self._fetch(content, indices)
        if theirs is None:
            self.unread.append(name)
            return
        if theirs.shape != ours.shape:
            raise DecodeError(f"expected frames of shape {ours.shape} from decord, it returned {theirs.shape}")
        for index, one, other in zip(indices, ours, theirs, strict=True):
            difference = float(np.abs(one.astype(np.int16) - other).mean())
            if difference > _TOLERANCE_LEVELS:
                raise DecodeError(
                    f"frame {index} fetched by decord differs from the one fetched by PyAV by {difference:.1f} levels"
                )
        self.compared += 1

    def sentence(self) -> str:
        """What was compared, in one line."""
        total = self.compared + len(self.unread)
        unread = f"; it cannot read the others, for example {self.unread[0]}" if self.unread else ""
        return f"decord, a second decoder, fetches the same frames of {self.compared} of {total} clips{unread}"

    def _fetch(self, content: bytes | memoryview, indices: list[int]) -> NDArray[np.uint8] | None:
        """Frames (len(indices), H, W, 3) by decord; None if it crashed, hung or refused the clip."""
        if self._child is None:
            path = os.pathsep.join(path for path in sys.path if path)
            self._child = subprocess.Popen(  # noqa: S603  this interpreter, and code of this module
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # decord looks for its library along PATH, too, and fails where there is none.
                env={**child_environment(), "PATH": os.defpath, "PYTHONPATH": path},
            )
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise ValueError("the child has pipes")
        watchdog = Watchdog(child.pid, silence_s=_PATIENCE_S, total_s=_PATIENCE_S)
        try:
            _write(child.stdin, json.dumps(indices).encode())
            _write(child.stdin, content)
            watchdog.wait(child.stdout.fileno())
            shape = json.loads(_read(child.stdout))
            return None if shape is None else np.frombuffer(_read(child.stdout), np.uint8).reshape(shape)
        except (OSError, EOFError):
            self._end()
            return None

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def answer_requests() -> None:
    """The child's side: indices and a clip from standard input, shape and frames to standard output, until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        while True:
            indices, content = json.loads(_read(sys.stdin.buffer)), _read(sys.stdin.buffer)
            frames = _decord_frames(content, indices)
            _write(answers, json.dumps(None if frames is None else frames.shape).encode())
            if frames is not None:
                _write(answers, frames.tobytes())
    except (EOFError, BrokenPipeError):
        return


def _decord_frames(content: bytes, indices: list[int]) -> NDArray[np.uint8] | None:
    import decord

    try:
        frames: NDArray[np.uint8] = decord.VideoReader(io.BytesIO(content), num_threads=1).get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError):
        return None
    return frames


def _write(pipe: IO[bytes], content: bytes | memoryview) -> None:
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content
