"""Decoder process: a clip's views out of shared memory into the batch of the worker that asks, one job at a time."""

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
"""For the interpreter; its arguments are the descriptors of the pipe and of the shared memory."""


def first_message(config: SamplingConfig, contract: FlowContract) -> bytes:
    """What the child is given before its first job, answered by one byte when it is ready."""
    return json.dumps({"sampling": asdict(config), "contract": contract.to_dict()}).encode()


def job_message(clip: Region, *, rgb: Region | None, flow: Region | None) -> bytes:
    """A job: where the packed clip is and its streams are wanted; answered by an error as JSON, or by no bytes."""
    return json.dumps([None if region is None else asdict(region) for region in (clip, rgb, flow)]).encode()


def answer_jobs() -> None:
    """What the child does until its parent closes the pipe or is gone."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    cv2.setNumThreads(1)  # there is a process a core
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
        except Exception as error:  # noqa: BLE001  whatever a damaged clip brings about
            answer = json.dumps(f"{type(error).__name__} while decoding: {error}").encode()
        else:
            answer = b""
        pipe.send_bytes(answer)


def _region(values: dict[str, Any] | None) -> Region | None:
    return None if values is None else Region(**values | {"shape": tuple(values["shape"])})


def _end_with_parent(pipe_fd: int) -> None:
    """A decoder that hangs would outlive a parent that is gone."""
    poll = select.poll()
    poll.register(pipe_fd, 0)  # reports the other end's closing whatever is asked for
    poll.poll()
    os._exit(1)
