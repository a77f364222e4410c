"""Process pool for decoding: threads of one process scale to about two cores because of Python's GIL.

A decoder is a child process of the worker and decodes the views of a clip directly into the worker's batch in shared
memory. Encoded clips are passed through shared memory too; the pipe carries only their locations and JSON answers.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_views
from twostream_ray.data.loading.decoder_child import COMMAND, first_message, job_message
from twostream_ray.data.loading.packed_clip import PackedClip
from twostream_ray.data.loading.shared_memory import SharedMemory
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.video.confinement import child_environment
from twostream_ray.errors import DecodeError

_MIN_INPUT_BYTES = 1 << 21
_END_S = 5.0

Stream = NDArray[np.uint8] | None


class DecoderPool:
    """Decodes in child processes; in the calling thread while they start, or if there are none."""

    def __init__(self, num_processes: int, *, config: SamplingConfig, contract: FlowContract) -> None:
        """Start the processes; with any, output arrays must be allocated in `memory`, otherwise that is None."""
        self._config, self._contract = config, contract
        self.memory = SharedMemory() if num_processes else None
        self._free: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        self._decoders: list[_Decoder] = []
        self._starting: list[threading.Thread] = []
        for _ in range(num_processes if self.memory is not None else 0):
            decoder = _Decoder(self.memory, config=config, contract=contract)  # type: ignore[arg-type]
            thread = threading.Thread(target=self._start, args=(decoder,), name="decoder-start", daemon=True)
            self._decoders.append(decoder)
            self._starting.append(thread)
            thread.start()

    def wait_until_ready(self) -> None:
        """Wait until every process has started."""
        for thread in self._starting:
            thread.join()

    def decode(self, packed: PackedClip, *, rgb: Stream, flow: Stream) -> None:
        """Decode all views of a clip into `rgb` (views, T, 3, H, W) and `flow` (views, T, 2L, H, W); None skips one.

        Raises:
            DecodeError: a requested stream is not in the clip, it is damaged, or it crashed two processes.
        """
        try:
            decoder = self._free.get_nowait()
        except queue.Empty:
            decode_views(
                packed.encoded(), packed.views(), config=self._config, contract=self._contract, rgb=rgb, flow=flow
            )
            return
        try:
            decoder.decode(packed, rgb=rgb, flow=flow)
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """Terminate all processes, including those that are still starting."""
        for decoder in self._decoders:
            decoder.kill()
        self.wait_until_ready()
        for decoder in self._decoders:
            decoder.end()

    def _start(self, decoder: _Decoder) -> None:
        if decoder.start():
            self._free.put(decoder)


class _Decoder:
    """One child process, used by one thread at a time."""

    def __init__(self, memory: SharedMemory, *, config: SamplingConfig, contract: FlowContract) -> None:
        self._memory, self._settings = memory, first_message(config, contract)
        self._input = memory.allocate(_MIN_INPUT_BYTES)
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bool:
        """Start the process and wait until it is ready; returns whether that succeeded."""
        with self._lock:
            if self._closed:
                return False
            self._pipe, theirs = Pipe()
            # multiprocessing would import the user's script again in the child.
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and code
                [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(self._memory.fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._memory.fd),
                env=child_environment(),
            )
            theirs.close()
        return self._ask(self._settings) is not None

    def decode(self, packed: PackedClip, *, rgb: Stream, flow: Stream) -> None:
        """As `DecoderPool.decode`; a process that dies is restarted once, as the clip may not be the cause."""
        size = packed.nbytes
        if size > self._input.nbytes:
            self._memory.free(self._input)
            self._input = self._memory.allocate(2 * size)
        packed.write(self._input)
        locate = self._memory.locate
        message = job_message(
            locate(self._input[:size]),
            rgb=None if rgb is None else locate(rgb),
            flow=None if flow is None else locate(flow),
        )
        answer = self._ask(message)
        if answer is None:
            self.end()
            answer = self._ask(message) if self.start() else None
        if answer is None:
            raise DecodeError(f"a clip of {packed.num_frames} frames crashed its decoder process ({self.end()})")
        if answer:
            raise DecodeError(json.loads(answer))

    def kill(self) -> None:
        """Kill the process without waiting; it is not restarted."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()  # closing the pipe would not do: another thread may be reading from it

    def _ask(self, message: bytes) -> bytes | None:
        """The child's answer; None if it has exited."""
        try:
            self._pipe.send_bytes(message)
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def end(self) -> str:
        """Terminate the process and wait for it; returns how it exited."""
        if self._process is None:
            return "it did not start"
        self._pipe.close()  # the child exits when its pipe is closed
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
