"""Decoder process: decodes clips from shared memory into the parent's batch in shared memory, one job at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_views
from twostream_ray.data.loading.packed_clip import PackedClip
from twostream_ray.data.loading.shared_memory import Region, SharedMemoryView
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.errors import DecodeError

COMMAND = "from twostream_ray.data.loading.decoder_child import answer_jobs; answer_jobs()"
"""Code for `python -c`; its arguments are the file descriptors of the pipe and of the shared memory."""


def first_message(config: SamplingConfig, contract: FlowContract) -> bytes:
    """The settings sent to the child before its first job; it answers with one byte when it is ready."""
    return json.dumps({"sampling": asdict(config), "contract": contract.to_dict()}).encode()


def job_message(clip: Region, *, rgb: Region | None, flow: Region | None) -> bytes:
    """A job: the regions of the packed clip and of its output streams; the answer is an error as JSON, or empty."""
    return json.dumps([None if region is None else asdict(region) for region in (clip, rgb, flow)]).encode()


def answer_jobs() -> None:
    """Main loop of the child: answer jobs until the parent closes the pipe or exits."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    cv2.setNumThreads(1)  # there is one process per core
    pipe_fd, memory_fd = map(int, sys.argv[1:3])
    pipe = Connection(pipe_fd)
    threading.Thread(target=_end_with_parent, args=(pipe_fd,), daemon=True).start()
    memory = SharedMemoryView(memory_fd)
    settings = json.loads(pipe.recv_bytes())
    config, contract = SamplingConfig(**settings["sampling"]), FlowContract.from_dict(settings["contract"])
    pipe.send_bytes(b".")
    while True:
        try:
            clip, rgb, flow = (_region(values) for values in json.loads(pipe.recv_bytes()))
        except (EOFError, OSError):
            return
        packed = PackedClip.read(memory.array(clip))  # type: ignore[arg-type]  # a job has a clip
        try:
            decode_views(
                packed.encoded(),
                packed.views(),
                config=config,
                contract=contract,
                rgb=None if rgb is None else memory.array(rgb),
                flow=None if flow is None else memory.array(flow),
            )
        except DecodeError as error:
            answer = json.dumps(str(error)).encode()
        except Exception as error:  # noqa: BLE001  a damaged clip may raise anything
            answer = json.dumps(f"{type(error).__name__} while decoding: {error}").encode()
        else:
            answer = b""
        pipe.send_bytes(answer)


def _region(values: dict[str, Any] | None) -> Region | None:
    return None if values is None else Region(**values | {"shape": tuple(values["shape"])})


def _end_with_parent(pipe_fd: int) -> None:
    """Exit when the parent does: a hanging decoder would outlive it."""
    poll = select.poll()
    poll.register(pipe_fd, 0)  # hang-up is always reported, whatever the event mask
    poll.poll()
    os._exit(1)
