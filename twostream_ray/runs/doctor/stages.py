"""Bottleneck analysis of a training's pipeline: the capacity of each stage, and the rate that the slowest one allows.

Stages overlap, so the slowest one sets the rate. On CPUs they share cores, whose time adds up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from twostream_ray.runs.doctor.measurement import Measured

REQUESTS_PER_UNIT = 4
"""Sequential requests to a store per row group: the file's size, its footer, the rest of the footer, the columns."""

_CORES = "cores"
_FAST_READING = 2.0
"""A reader this many times faster than the whole pipeline does not slow it down."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage at the predicted rate."""

    name: str
    capacity: float
    """Samples per second of the stage by itself."""
    needs: float
    """What the predicted rate needs of it, in `unit`."""
    has: float
    unit: str

    @property
    def use(self) -> float:
        """Utilisation: the share of `has` that is needed."""
        return self.needs / self.has if self.has and math.isfinite(self.has) else 0.0


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted speed and cost of a training."""

    stages: list[Stage]
    bottleneck: str
    samples_per_second: float
    hours_per_epoch: float
    cost_per_epoch: float | None
    cores_per_device: int
    """CPU cores needed to keep one worker's device busy."""
    hiding_batch: int | None
    """Smallest global batch whose backward pass hides the all-reduce; None for one worker."""
    sentence: str


def predict(
    measured: Measured, *, clips: int, validation_views: int, price: float | None, is_s3: bool = False
) -> Prediction:
    """Predict the rate of all stages together, for an epoch of `clips` and its `validation_views`."""
    one = measured
    step, reading, decoding = one.step, one.reading, one.decoding
    batch = one.global_batch
    latency = REQUESTS_PER_UNIT * reading.first_byte_s / max(reading.clips_per_request, 1e-9) if is_s3 else 0.0
    # A task's time per sample consists of the requests' latency and the rest.
    whole = one.read_tasks / reading.samples_per_second
    latency = min(latency, 0.99 * whole)
    with_gradients = one.together or step
    cpu = reading.cpu_seconds + decoding.cpu_seconds * (one.decode_at != "stream")
    of_device = (with_gradients.cpu_seconds * one.workers / batch) if not one.gpus else 0.0
    if one.decode_at == "stream":
        cpu = max(cpu, decoding.cpu_seconds)
    capacities = {
        "reading": one.read_tasks / (whole - latency),
        "store latency": one.read_tasks / latency if latency else math.inf,
        "decoding": decoding.samples_per_second,
        "host to device": one.workers * one.transfer_bytes / one.sample_bytes if one.transfer_bytes else math.inf,
        "step": batch / min(step.seconds, with_gradients.seconds),
        "all-reduce": batch / one.all_reduce_s if one.all_reduce_s else math.inf,
    }
    limits = {
        "read": reading.samples_per_second,
        "decode": capacities["decoding"],
        "copy": capacities["host to device"],
        "device": batch / with_gradients.seconds,
        _CORES: _of_cores(one, cpu_seconds=cpu + of_device),
    }
    rate = min(limits.values())
    bottleneck = _bottleneck(
        limits,
        capacities,
        rate,
        costs={"reading": reading.cpu_seconds, "step": of_device, "decoding": decoding.cpu_seconds},
    )
    stages = [
        *_stages(one, capacities, rate),
        Stage(name=_CORES, capacity=limits[_CORES], needs=rate * (cpu + of_device), has=one.cpus, unit="cores"),
    ]
    # Scoring has no backward pass, which takes twice what forward does.
    validating = min(limits["read"], limits["decode"], limits["copy"], 3 * limits["device"], limits[_CORES] * 2)
    hours = (clips / rate + validation_views / validating) / 3600
    cost = None if price is None else hours * price * one.workers
    cores = max(1, math.ceil(capacities["step"] / one.workers * cpu + of_device * capacities["step"] / one.workers))
    hiding = _hiding_batch(one) if one.workers > 1 else None
    made = Prediction(
        stages=stages,
        bottleneck=bottleneck,
        samples_per_second=rate,
        hours_per_epoch=hours,
        cost_per_epoch=cost,
        cores_per_device=cores,
        hiding_batch=hiding,
        sentence="",
    )
    return replace(made, sentence=_sentence(made, one))


def _of_cores(one: Measured, *, cpu_seconds: float) -> float:
    """Samples per second that the cores allow: by CPU time, or as measured with loader and steps at once.

    Stages compete for cores. The measurement counts only if its single reader did not slow it down.
    """
    fits = one.cpus / cpu_seconds
    one_reader = one.reading.samples_per_second / one.read_tasks
    is_held_up = one_reader < _FAST_READING * one.whole_rate / one.workers
    return fits if is_held_up or not one.whole_rate else min(fits, one.whole_rate)


def _bottleneck(limits: dict[str, float], capacities: dict[str, float], rate: float, *, costs: dict[str, float]) -> str:
    """The stage to speed up: if cores are the limit, the one that uses most of their time."""
    names = {"decode": "decoding", "copy": "host to device"}
    slowest = next(name for name, limit in limits.items() if limit <= rate)
    if slowest == "read":
        return min(("reading", "store latency"), key=lambda name: capacities[name])
    if slowest == "device":
        return min(("step", "all-reduce"), key=lambda name: capacities[name])
    if slowest == _CORES:
        return max(costs, key=lambda name: costs[name])
    return names[slowest]


def _stages(one: Measured, capacities: dict[str, float], rate: float) -> list[Stage]:
    """Each stage in its own unit."""
    requests = REQUESTS_PER_UNIT / max(one.reading.clips_per_request, 1e-9)
    units = {
        "reading": (one.stored_bytes / 1e6, "MB/s"),
        "store latency": (requests, "requests/s"),
        "decoding": (1.0, f"samples/s by {one.decoders} {'tasks' if one.decode_at == 'stream' else 'decoders'}"),
        "host to device": (one.sample_bytes / 1e9, "GB/s"),
        "step": (1.0, f"samples/s on {one.workers} x {one.device}"),
        "all-reduce": (one.gradient_bytes / one.global_batch / 1e9, "GB/s of gradients"),
    }
    return [
        Stage(
            name=name,
            capacity=capacity,
            needs=rate * units[name][0],
            has=capacity * units[name][0],
            unit=units[name][1],
        )
        for name, capacity in capacities.items()
        if math.isfinite(capacity)
    ]


def _hiding_batch(one: Measured) -> int:
    """The time of backward grows with the batch, the size of the gradients does not."""
    share = one.global_batch / one.workers
    backward_of_sample = one.step.backward_seconds / share
    return one.workers * max(1, math.ceil(one.all_reduce_s / max(backward_of_sample, 1e-9) - 1e-9))


def _sentence(made: Prediction, one: Measured) -> str:
    device = "GPU" if one.gpus else "worker"
    cost = "" if made.cost_per_epoch is None else f" and {made.cost_per_epoch:,.2f}"
    hiding = ""
    if made.hiding_batch is not None:
        hides = "hides" if made.hiding_batch <= one.global_batch else "does not hide"
        hiding = (
            f"; a global batch of {one.global_batch} {hides} the all-reduce behind the backward pass, "
            f"{made.hiding_batch} is the least that does"
        )
    return (
        f"the bottleneck is {made.bottleneck}: {made.samples_per_second:,.2f} samples/s, so an epoch takes "
        f"{made.hours_per_epoch:,.3g} h{cost}; a {device} needs {made.cores_per_device} CPU cores{hiding}"
    )
