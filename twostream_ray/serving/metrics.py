"""Prometheus metrics of the service, in their own collector registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from twostream_ray.serving.current_model import CurrentModel
from twostream_ray.serving.jobs import JobQueue, Timings
from twostream_ray.serving.uploads import Receiver

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_STAGES = ("receive", "wait", "decode", "network", "total")


class Metrics:
    """Counters of requests, histograms of latency by stage and gauges of the current load."""

    def __init__(self, *, current: CurrentModel, queue: JobQueue, receiver: Receiver) -> None:
        """Read the gauges from these at every scrape."""
        self._registry = registry = CollectorRegistry()
        self._current = current
        self.requests = Counter(
            "twostream_requests", "Responses by route and status", ["route", "status"], registry=registry
        )
        self._stages = Histogram(
            "twostream_stage_seconds", "Latency of a response by stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._model = Gauge("twostream_model_info", "The served model version", ["name", "version"], registry=registry)
        for name, what, value in (
            ("twostream_receiving", "Request bodies being received", lambda: receiver.receiving),
            ("twostream_waiting", "Jobs waiting for a worker", lambda: queue.begun - queue.running),
            ("twostream_running", "Jobs running", lambda: queue.running),
            ("twostream_ready", "1 if a model is loaded", lambda: float(current.loaded is not None)),
            (
                "twostream_model_fault",
                "1 if the last poll or load of the model failed",
                lambda: float(bool(current.fault)),
            ),
            ("twostream_model_swaps", "Model versions swapped in", lambda: current.swaps),
            ("twostream_received_bytes", "Total bytes of request bodies", lambda: receiver.received_bytes),
        ):
            Gauge(name, what, registry=registry).set_function(value)

    def observe(self, timings: Timings) -> None:
        """Record the latency of a response."""
        for stage in _STAGES:
            self._stages.labels(stage).observe(getattr(timings, f"{stage}_seconds"))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self._model.clear()
        if self._current.loaded is not None:
            self._model.labels(self._current.loaded.name, self._current.loaded.version).set(1)
        return generate_latest(self._registry)
