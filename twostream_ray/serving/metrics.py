"""Metrics of the service in Prometheus' text format, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from twostream_ray.serving.current_model import CurrentModel
from twostream_ray.serving.jobs import JobQueue, Timings
from twostream_ray.serving.uploads import Receiver

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_STAGES = ("receive", "wait", "decode", "network", "total")


class Metrics:
    """Counts of requests and seconds, and what is going on now."""

    def __init__(self, *, current: CurrentModel, queue: JobQueue, receiver: Receiver) -> None:
        """Look at these when asked."""
        self._registry = registry = CollectorRegistry()
        self._current = current
        self.requests = Counter("twostream_requests", "Requests answered", ["route", "status"], registry=registry)
        self._stages = Histogram(
            "twostream_stage_seconds", "Seconds of an answer", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._model = Gauge("twostream_model_info", "The version that answers", ["name", "version"], registry=registry)
        for name, what, value in (
            ("twostream_receiving", "Bodies on their way", lambda: receiver.receiving),
            ("twostream_waiting", "Videos that wait for a worker", lambda: queue.begun - queue.running),
            ("twostream_running", "Videos that are worked on", lambda: queue.running),
            ("twostream_ready", "1 where there is a model", lambda: float(current.loaded is not None)),
            ("twostream_model_fault", "1 where the last look at the model failed", lambda: float(bool(current.fault))),
            ("twostream_model_swaps", "Versions that took over from another", lambda: current.swaps),
            ("twostream_received_bytes", "Bytes of all bodies so far", lambda: receiver.received_bytes),
        ):
            Gauge(name, what, registry=registry).set_function(value)

    def observe(self, timings: Timings) -> None:
        """An answer was given."""
        for stage in _STAGES:
            self._stages.labels(stage).observe(getattr(timings, f"{stage}_seconds"))

    def text(self) -> bytes:
        """All of them, as a scrape wants them."""
        self._model.clear()
        if self._current.loaded is not None:
            self._model.labels(self._current.loaded.name, self._current.loaded.version).set(1)
        return generate_latest(self._registry)
