from dataclasses import replace
from typing import Any

import pytest

from twostream_ray.runs.doctor.measurement import Measured
from twostream_ray.runs.doctor.probes import SampleRate, StepRate
from twostream_ray.runs.doctor.stages import Prediction, predict

STEP = StepRate(seconds=0.5, cpu_seconds=0.05, backward_seconds=0.3)
BALANCED = Measured(
    workers=4,
    cpus=64,
    gpus=4,
    global_batch=96,
    device="GPU",
    matrix_rate=4e14,
    reading=SampleRate(
        samples_per_second=2000, cpu_seconds=0.001, bytes_per_sample=1e6, first_byte_s=0.02, clips_per_request=16
    ),
    read_tasks=16,
    stored_bytes=1.1e6,
    decoding=SampleRate(samples_per_second=1000, cpu_seconds=0.03),
    decode_at="worker",
    decoders=64,
    transfer_bytes=1e10,
    sample_bytes=5.8e6,
    step=STEP,
    together=replace(STEP, seconds=0.52),
    all_reduce_s=0.1,
    gradient_bytes=1e9,
)
"""Four GPUs whose steps are the slowest stage: 96 / 0.52 samples a second."""

SLOWED: dict[str, dict[str, Any]] = {
    "step": {},
    "reading": {"reading": replace(BALANCED.reading, samples_per_second=50)},
    "store latency": {"reading": replace(BALANCED.reading, samples_per_second=50, first_byte_s=1.2)},
    "decoding": {"decoding": replace(BALANCED.decoding, samples_per_second=40, cpu_seconds=1.5)},
    "host to device": {"transfer_bytes": 1e8},
    "all-reduce": {"all_reduce_s": 2.0, "together": replace(STEP, seconds=2.1)},
}


def judged(measured: Measured, **options: Any) -> Prediction:
    return predict(measured, **{"clips": 9600, "validation_views": 0, "price": None, "is_s3": True} | options)


@pytest.mark.parametrize("stage", SLOWED)
def test_the_stage_with_the_least_capacity_is_named_and_sets_the_rate(stage: str) -> None:
    made = judged(replace(BALANCED, **SLOWED[stage]))
    assert made.bottleneck == stage and stage in made.sentence
    (row,) = (one for one in made.stages if one.name == stage)
    assert made.samples_per_second <= row.capacity * 1.001
    assert row.use == max(one.use for one in made.stages) and 0.8 < row.use <= 1.001


def test_an_epoch_s_hours_and_cost_follow_from_the_rate_and_the_views_that_validate() -> None:
    made = judged(BALANCED, price=2.5)
    assert made.samples_per_second == pytest.approx(96 / 0.52)
    assert made.hours_per_epoch == pytest.approx(9600 / (96 / 0.52) / 3600)
    assert made.cost_per_epoch == pytest.approx(made.hours_per_epoch * 4 * 2.5)
    # Scoring has no backward pass.
    assert judged(BALANCED, validation_views=9600).hours_per_epoch == pytest.approx(made.hours_per_epoch * 4 / 3)


def test_cores_that_a_gpu_wants_keep_it_fed() -> None:
    # 96 / 0.5 / 4 samples a second and GPU, each 31 ms of CPU.
    assert judged(BALANCED).cores_per_device == 2


def test_the_least_batch_that_hides_the_all_reduce_has_a_backward_pass_as_long() -> None:
    made = judged(replace(BALANCED, all_reduce_s=0.6))
    assert made.hiding_batch == 192 and "does not hide" in made.sentence
    assert judged(BALANCED).hiding_batch == 32 and "96 hides" in judged(BALANCED).sentence
    alone = judged(replace(BALANCED, workers=1, together=None, all_reduce_s=0.0))
    assert alone.hiding_batch is None and "all-reduce" not in alone.sentence


def test_on_cpus_step_and_decoding_share_the_cores_and_the_larger_is_named() -> None:
    cpu = replace(
        BALANCED,
        gpus=0,
        workers=1,
        cpus=2,
        global_batch=8,
        step=StepRate(seconds=0.8, cpu_seconds=0.8, backward_seconds=0.5),
        together=None,
        all_reduce_s=0.0,
        transfer_bytes=0.0,
        decoding=SampleRate(samples_per_second=12, cpu_seconds=0.15),
    )
    made = judged(cpu, is_s3=False)
    # 0.1 s of the step, 0.15 of decoding and 0.001 of reading, by two cores.
    assert made.samples_per_second == pytest.approx(2 / 0.251) and made.bottleneck == "decoding"
    assert {one.name for one in made.stages} == {"reading", "decoding", "step", "cores"}


def test_on_cpus_the_whole_sets_the_rate_unless_its_one_reader_held_it_up() -> None:
    cpu = replace(BALANCED, gpus=0, workers=2, cpus=64, whole_rate=90.0)
    made = judged(cpu)
    assert made.samples_per_second == 90 and made.bottleneck == "decoding"
    busy = replace(STEP, seconds=0.5, cpu_seconds=0.5 * 4)
    assert judged(replace(cpu, together=busy)).bottleneck == "step"
    # 16 tasks read 1,000 samples a second, so one reads 62.5.
    slow = replace(cpu, reading=replace(BALANCED.reading, samples_per_second=1000))
    assert judged(slow).samples_per_second == pytest.approx(96 / 0.52)


def test_tasks_that_decode_are_counted_once() -> None:
    made = judged(replace(BALANCED, decode_at="stream", decoding=replace(BALANCED.decoding, samples_per_second=100)))
    assert made.bottleneck == "decoding" and made.samples_per_second == 100
