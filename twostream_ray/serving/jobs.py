"""Admission control: a thread pool of fixed size with a bounded queue; jobs of disconnected clients are cancelled."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.video.prepare import Source
from twostream_ray.serving.clip_cache import ClipCache
from twostream_ray.serving.current_model import CurrentModel, LoadedModel
from twostream_ray.serving.refusals import Refusal
from twostream_ray.serving.settings import LimitsConfig
from twostream_ray.serving.uploads import Upload

_Result = TypeVar("_Result")
_POLL_S = 0.1
NAME = "video"
"""Name of every upload in messages: the client's file names are not disclosed."""


@dataclass(kw_only=True)
class Timings:
    """Latency of an answer by stage, in seconds."""

    receive_seconds: float = 0.0
    """Until the request body was complete."""
    wait_seconds: float = 0.0
    """Waiting in the queue and for the network's lock."""
    decode_seconds: float = 0.0
    """Decoding and optical flow; 0 for a cached video."""
    network_seconds: float = 0.0
    """Sampling the views from the clip and running the network."""
    total_seconds: float = 0.0
    """All stages and the time between them."""


@dataclass(kw_only=True)
class Job:
    """One request's video, the model version that serves it, and its cancellation flag."""

    upload: Upload
    model: LoadedModel
    """Fixed for the request, even if another version is swapped in meanwhile."""
    cancelled: threading.Event
    timings: Timings = field(default_factory=Timings)
    clips: ClipCache

    def require_wanted(self) -> None:
        """Stop if the request was cancelled.

        Raises:
            CancelledError: it was.
        """
        if self.cancelled.is_set():
            raise CancelledError

    def clip(self) -> EncodedClip:
        """The decoded video with its flow, from the cache if possible.

        Raises:
            VideoError: the video cannot be used.
            CancelledError: the request was cancelled.
        """
        key = (self.upload.sha256, self.model.classifier.package.contract)
        found = self.clips.get(key)
        if found is None:
            started = time.perf_counter()
            source = Source(video=self.upload.path)
            found = self.model.classifier.prepare(source, name=NAME, cancelled=self.cancelled)
            self.timings.decode_seconds += time.perf_counter() - started
            self.clips.put(key, found)
        return found

    @contextmanager
    def network(self) -> Iterator[None]:
        """The block in which the network computes, one at a time.

        Raises:
            CancelledError: the request was cancelled.
        """
        started = time.perf_counter()
        while not self.model.network_lock.acquire(timeout=_POLL_S):
            self.require_wanted()
        begun = time.perf_counter()
        self.timings.wait_seconds += begun - started
        try:
            yield
        finally:
            self.model.network_lock.release()
            self.timings.network_seconds += time.perf_counter() - begun


class JobQueue:
    """Threads that answer, as many as there are decoders, and those that wait for one."""

    def __init__(self, current: CurrentModel, clips: ClipCache, *, workers: int, limits: LimitsConfig) -> None:
        """Nothing runs yet."""
        self._current, self._clips, self._limits, self._workers = current, clips, limits, workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="answer")
        self._lock = threading.Lock()
        self._recent_seconds = 1.0
        self.begun = 0
        """Jobs that are waiting or running."""
        self.running = 0
        """Jobs that are running."""

    def require_room(self) -> None:
        """Refuse another job if the queue is full or no model is loaded.

        Raises:
            Refusal: 429 or 503.
        """
        if self._current.loaded is None:
            raise Refusal("no_model", "there is no model yet: try again", headers={"Retry-After": "5"})
        if self.begun >= self._workers + self._limits.queue:
            seconds = min(60, max(1, math.ceil(self.begun * self._recent_seconds / self._workers)))
            raise Refusal(
                "busy",
                f"{self.begun} videos are queued before this one: try again",
                headers={"Retry-After": str(seconds)},
            )

    async def run(self, request: Request, upload: Upload, work: Callable[[Job], _Result]) -> _Result:
        """Run a request's work in a worker thread; cancel it when the client disconnects or the time is up.

        Raises:
            Refusal: 429, 503, 504, or the client has disconnected.
            Exception: as raised by the work.
        """
        self.require_room()
        cancelled = threading.Event()
        queued = time.perf_counter()
        with self._lock:
            self.begun += 1
        future = self._threads.submit(self._run, upload, work, cancelled=cancelled, queued=queued)
        future.add_done_callback(self._ended)
        answered = asyncio.ensure_future(asyncio.wrap_future(future))
        disconnected = asyncio.ensure_future(_disconnected(request))
        try:
            both: list[asyncio.Future[Any]] = [answered, disconnected]
            await asyncio.wait(both, timeout=self._limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            if disconnected.done():
                raise Refusal("client_gone", "the client has disconnected")
            raise Refusal("took_too_long", f"an answer takes longer than {self._limits.answer_seconds:g} s")
        finally:
            disconnected.cancel()
            if not answered.done():
                cancelled.set()
                answered.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await asyncio.sleep(0)

    def stop(self) -> None:
        """Accept no more jobs, drop the queued ones and wait for the running ones, which end soon once cancelled."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(
        self, upload: Upload, work: Callable[[Job], _Result], *, cancelled: threading.Event, queued: float
    ) -> _Result:
        started = time.perf_counter()
        model = self._current.loaded
        assert model is not None  # noqa: S101  (there is no way back to none)
        timings = Timings(receive_seconds=upload.seconds, wait_seconds=started - queued)
        job = Job(upload=upload, model=model, cancelled=cancelled, timings=timings, clips=self._clips)
        with self._lock:
            self.running += 1
        try:
            job.require_wanted()
            return work(job)
        finally:
            taken = time.perf_counter() - started
            with self._lock:
                self.running -= 1
                self._recent_seconds += 0.2 * (taken - self._recent_seconds)

    def _ended(self, _: Future[_Result]) -> None:
        with self._lock:
            self.begun -= 1


async def _disconnected(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
