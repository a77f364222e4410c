import hashlib
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_shards import noise_shards

from twostream_ray.data.loading import pipeline, reading
from twostream_ray.data.loading.decode_device import decode_batch
from twostream_ray.data.loading.device import to_device
from twostream_ray.data.loading.lanes import Pass, plan_lanes
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig, DecodeAt
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.snippets import Batch
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.views import training_view
from twostream_ray.errors import ConfigError, ShardError

TRAINING = [
    Pass(split="train", epoch=0, training=True),
    Pass(split="test"),
    Pass(split="train", epoch=1, training=True),
]


@pytest.fixture(autouse=True)
def few_clips_are_read_before_ray_data_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or small data sets would never come through it."""
    monkeypatch.setattr(pipeline, "_CLIPS_READ_LOCALLY", 10)


def data_config(shard_set: ShardSet) -> DataConfig:
    return DataConfig(
        shards=shard_set.uri,
        sampling=SamplingConfig(num_snippets=2, min_stride_frames=1, max_stride_frames=3, test_times=2),
        transforms=TransformConfig(crop_px=32),
    )


def batches_of(
    shard_set: ShardSet,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch: int = 16,
    passes: list[Pass] | None = None,
    decode_at: str = "worker",
    **options: bool,
) -> list[tuple[Pass, list[Batch]]]:
    loader = SnippetLoader(
        shard_set,
        config=replace(data_config(shard_set), decode_at=decode_at),
        passes=passes or TRAINING,
        global_batch=batch,
        seed=7,
        rank=rank,
        world_size=world_size,
        through_ray=options.pop("through_ray", False),
        **options,
    )
    return [(a_pass, [with_flow(batch) for batch in batches]) for a_pass, batches in loader]


def with_flow(batch: Batch) -> Batch:
    """A batch with the flow that its device would decode."""
    if batch.encoded_flow is None:
        return batch
    assert batch.flow is None
    return replace(batch, flow=decode_batch(batch.encoded_flow, torch.device("cpu")).numpy(), encoded_flow=None)


def by_clip(passes: list[tuple[Pass, list[Batch]]]) -> dict[tuple[str, int, int], list[bytes]]:
    found: dict[tuple[str, int, int], list[bytes]] = {}
    for a_pass, batches in passes:
        for batch in batches:
            assert batch.rgb is not None and batch.flow is not None
            for position in np.flatnonzero(batch.weights):
                key = (a_pass.split, a_pass.epoch, int(batch.clips[position]))
                found.setdefault(key, []).append(batch.rgb[position].tobytes() + batch.flow[position].tobytes())
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_clip_comes_once_a_pass_whatever_the_number_of_workers(shard_set: ShardSet, world_size: int) -> None:
    workers = [batches_of(shard_set, rank=rank, world_size=world_size) for rank in range(world_size)]
    counts = Counter(key for worker in workers for key, views in by_clip(worker).items() for _ in views)
    expected = {("train", epoch, int(clip)): 1 for epoch in (0, 1) for clip in shard_set.split("train")}
    expected |= {("test", 0, int(clip)): 2 for clip in shard_set.split("test")}  # two test views a clip
    assert counts == expected
    steps = {tuple(len(batches) for _, batches in worker) for worker in workers}
    assert len(steps) == 1


@pytest.mark.parametrize("decode_at", ["worker", "stream", "device"])
def test_samples_are_bit_for_bit_the_same_for_1_2_and_3_workers(shard_set: ShardSet, decode_at: str) -> None:
    alone = by_clip(batches_of(shard_set))
    for world_size in (1, 2, 3) if decode_at != "worker" else (2, 3):
        together: dict[tuple[str, int, int], list[bytes]] = {}
        for rank in range(world_size):
            together |= by_clip(batches_of(shard_set, rank=rank, world_size=world_size, decode_at=decode_at))
        assert together == alone


def test_a_step_holds_the_same_clips_for_any_number_of_workers(shard_set: ShardSet) -> None:
    def steps(world_size: int) -> list[Counter[int]]:
        workers = [batches_of(shard_set, rank=rank, world_size=world_size) for rank in range(world_size)]
        return [
            Counter(int(clip) for batch in step for clip in batch.clips[batch.weights > 0])
            for pass_number in range(len(TRAINING))
            for step in zip(*(worker[pass_number][1] for worker in workers), strict=True)
        ]

    assert steps(1) == steps(2) == steps(3)


@pytest.mark.parametrize("decode_at", ["worker", "stream", "device"])
def test_ray_data_gives_the_batches_that_reading_in_process_gives(shard_set: ShardSet, decode_at: str) -> None:
    direct = batches_of(shard_set, rank=1, world_size=2)
    streamed = batches_of(shard_set, rank=1, world_size=2, through_ray=True, decode_at=decode_at)
    for (_, expected), (_, got) in zip(direct, streamed, strict=True):
        for one, other in zip(expected, got, strict=True):
            np.testing.assert_array_equal(one.clips, other.clips)
            np.testing.assert_array_equal(one.rgb, other.rgb)
            np.testing.assert_array_equal(one.flow, other.flow)
            np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("decode_at", ["stream", "device"])
@pytest.mark.parametrize("want", ["rgb", "flow"])
def test_one_stream_alone_is_the_same_wherever_it_is_decoded(shard_set: ShardSet, want: str, decode_at: str) -> None:
    wanted = {"want_rgb": want == "rgb", "want_flow": want == "flow"}
    (_, at_worker), *_ = batches_of(shard_set, **wanted)
    (_, elsewhere), *_ = batches_of(shard_set, decode_at=decode_at, **wanted)
    for one, other in zip(at_worker, elsewhere, strict=True):
        np.testing.assert_array_equal(getattr(one, want), getattr(other, want))
        assert {one.rgb is None, one.flow is None} == {other.rgb is None, other.flow is None} == {True, False}


def test_epochs_differ_in_order_and_draw_and_repeat_exactly(shard_set: ShardSet) -> None:
    (_, first), _, (_, second) = batches_of(shard_set)
    (_, again), _, _ = batches_of(shard_set)
    assert [batch.clips.tolist() for batch in first] == [batch.clips.tolist() for batch in again]
    assert [batch.clips.tolist() for batch in first] != [batch.clips.tolist() for batch in second]


def test_totals_say_how_many_clips_the_step_has_over_all_workers(shard_set: ShardSet) -> None:
    workers = [batches_of(shard_set, rank=rank, world_size=3) for rank in range(3)]
    for number in range(len(TRAINING)):
        for step in zip(*(worker[number][1] for worker in workers), strict=True):
            assert {batch.total for batch in step} == {sum(float(batch.weights.sum()) for batch in step)}


@pytest.mark.parametrize("decode_at", ["worker", "device"])
def test_a_worker_without_clips_takes_part_with_weight_zero(shard_set: ShardSet, decode_at: str) -> None:
    small = replace(shard_set, index=shard_set.index.slice(0, 1))
    split = small.index["splits"][0].as_py()[0]
    for rank, weight in ((0, 1.0), (1, 0.0)):
        passes = [Pass(split=split, training=True)]
        ((_, (batch,)),) = batches_of(small, rank=rank, world_size=2, passes=passes, decode_at=decode_at)
        assert batch.weights.tolist() == [weight] and batch.total == 1
        assert batch.rgb is not None and batch.flow is not None and len(batch.rgb) == len(batch.flow) == 1


def test_a_one_stream_job_gets_one_stream(shard_set: ShardSet) -> None:
    ((_, batches),) = batches_of(shard_set, passes=[Pass(split="val")], want_rgb=False)
    assert all(batch.rgb is None and batch.flow is not None for batch in batches)


@pytest.mark.parametrize("stack", ["forward", "bidirectional", "trajectory"])
def test_clips_come_cut_down_to_the_fields_of_their_kind_of_stack(shard_set: ShardSet, stack: str) -> None:
    config = data_config(shard_set)
    config = replace(config, sampling=replace(config.sampling, flow_stack=stack, flow_length=4))
    passes = [Pass(split="val", training=True)]
    loader = SnippetLoader(shard_set, config=config, passes=passes, global_batch=16, through_ray=False)
    shapes = [batch.flow.shape for _, batches in loader for batch in batches if batch.flow is not None]
    assert shapes == [(8, 2, 8, 32, 32)]
    cut = [len(fields) for unit in loader.units() for fields in loader.reader.read_unit(unit)["fields"].to_pylist()]
    assert len(cut) == 8 and max(cut) <= 2 * 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """50 clips of 12 fields of 16 px, flow alone, cut into shards of 1, 16 and 33 rows: no split is even."""
    return noise_shards(str(tmp_path_factory.mktemp("tiny")), rows=(1, 16, 33), num_fields=12)


@pytest.mark.parametrize(
    ("rank", "first_clips", "sha256"),
    [
        (0, [1, 3, 26, 28], "262aebe78d20f3ce3fed8eca02dacb1e66d6c831ee9f2fbd664248644cc3bb2f"),
        (1, [14, 49, 34, 43], "0bb50f93bf4fa41ec44a18ded3a15fdfab9d65ed3dc09eace7d1faddb18905b9"),
    ],
)
def test_order_and_draws_of_a_seed_are_those_of_every_version_before(
    tiny: ShardSet, rank: int, first_clips: list[int], sha256: str
) -> None:
    """A run that another version began resumes with the same batches, bit for bit."""
    sampling = SamplingConfig(num_snippets=2, flow_length=2, min_stride_frames=1, max_stride_frames=5, test_times=2)
    config = DataConfig(
        shards=tiny.uri, lanes=4, sampling=sampling, transforms=TransformConfig(crop_px=16, size_jitter=0.0)
    )
    loader = SnippetLoader(
        tiny,
        config=config,
        passes=[Pass(split="train", epoch=3, training=True, first_step=1), Pass(split="train")],
        global_batch=8,
        seed=7,
        rank=rank,
        world_size=2,
        want_rgb=False,
        through_ray=False,
    )
    digest = hashlib.sha256()
    order = []
    for _, batches in loader:
        for batch in batches:
            assert batch.flow is not None
            order.append(batch.clips.tolist())
            counts = batch.clips.tobytes() + batch.weights.tobytes() + batch.labels.tobytes()
            digest.update(counts + str(batch.total).encode() + batch.flow.tobytes())
    assert order[0] == first_clips and digest.hexdigest() == sha256


def test_each_pass_is_planned_once_and_each_view_drawn_once(tiny: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Pass] = []
    drawn: list[str] = []

    def counted_plan(shard_set: ShardSet, a_pass: Pass, **options: int) -> object:
        planned.append(a_pass)
        return plan_lanes(shard_set, a_pass, **options)

    def counted_draw(*shape: int, clip_id: str, **options: object) -> object:
        drawn.append(clip_id)
        return training_view(*shape, clip_id=clip_id, **options)

    monkeypatch.setattr(pipeline, "plan_lanes", counted_plan)
    monkeypatch.setattr(reading, "training_view", counted_draw)
    passes = [Pass(split="train", epoch=epoch, training=True) for epoch in range(2)]
    batches_of(tiny, passes=passes, want_rgb=False)
    assert planned == passes
    assert Counter(drawn) == {f"{clip}.mp4": 2 for clip in range(50)}


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_a_pass_broken_off_anywhere_and_resumed_by_other_workers_takes_every_clip_once(
    tiny: ShardSet, data: st.DataObject
) -> None:
    num_clips = data.draw(st.integers(1, 50), label="clips")
    way_before, way_after = (
        data.draw(st.sampled_from(("worker", "stream", "device")), label="decode_at") for _ in range(2)
    )
    lanes = data.draw(st.integers(1, 6), label="lanes")
    before, after = (data.draw(st.integers(1, lanes), label="workers") for _ in range(2))
    per_lane = data.draw(st.integers(1, 5), label="clips of a lane in a step")
    shard_set = replace(tiny, index=tiny.index.slice(0, num_clips))
    config = DataConfig(
        shards=tiny.uri,
        lanes=lanes,
        sampling=SamplingConfig(num_snippets=1, flow_length=2, min_stride_frames=1, max_stride_frames=1),
        transforms=TransformConfig(crop_px=16),
    )

    def run(
        workers: int, first_step: int, last_step: int | None, decode_at: DecodeAt = "worker"
    ) -> tuple[list[Counter[int]], dict[int, bytes]]:
        """The clips of each step over all workers, and every sample, from a step on to another."""
        a_pass = Pass(split="train", epoch=3, training=True, first_step=first_step)
        steps: list[Counter[int]] = []
        samples: dict[int, bytes] = {}
        for rank in range(workers):
            loader = SnippetLoader(
                shard_set,
                config=replace(config, decode_at=decode_at),
                passes=[a_pass],
                global_batch=lanes * per_lane,
                seed=5,
                rank=rank,
                world_size=workers,
                want_rgb=False,
                through_ray=False,
            )
            for _, batches in loader:
                for number, batch in enumerate(islice(batches, None if last_step is None else last_step - first_step)):
                    steps += [Counter() for _ in range(number + 1 - len(steps))]
                    flows = to_device(batch, torch.device("cpu")).flow
                    for clip, weight, flow in zip(batch.clips.tolist(), batch.weights, flows.numpy(), strict=True):
                        if weight:
                            steps[number][clip] += 1
                            samples[clip] = flow.tobytes()
        return steps, samples

    whole, samples = run(1, 0, None)
    kill = data.draw(st.integers(0, len(whole)), label="step at which the first workers die")
    first, seen = run(before, 0, kill, way_before)
    rest, seen_after = run(after, kill, None, way_after)
    assert [*first, *rest] == whole
    assert sum(whole, Counter()) == Counter(range(num_clips)), "every clip once"
    assert seen | seen_after == samples, "and the same draw of it, decoded anywhere"


def test_lanes_that_do_not_fit_are_refused(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match=r"training.global_batch must be a multiple of data.lanes \(8\), got 12"):
        batches_of(shard_set, batch=12)
    with pytest.raises(ConfigError, match=r"data.lanes must be at least the number of workers \(9\), got 8"):
        batches_of(shard_set, world_size=9)


@pytest.mark.parametrize("through_ray", [False, True])
def test_damage_in_a_shard_reaches_the_training_thread_as_one_line(
    shard_set: ShardSet, tmp_path: pytest.TempPathFactory, through_ray: bool
) -> None:
    import shutil
    from pathlib import Path

    copy = Path(str(tmp_path)) / "copy"
    shutil.copytree(shard_set.uri, copy)
    for path in (copy / "shards").iterdir():
        path.write_bytes(path.read_bytes()[:5000])
    damaged = replace(shard_set, uri=str(copy))
    with pytest.raises(ShardError, match=r"row group 0, cannot be read .*ingest again") as caught:
        batches_of(damaged, through_ray=through_ray)
    assert "\n" not in str(caught.value)


def test_a_step_in_which_others_alone_have_clips_repeats_a_sample_whose_flow_is_still_encoded(
    shard_set: ShardSet,
) -> None:
    small = replace(shard_set, index=shard_set.index.slice(0, 9))
    passes = [Pass(split=small.index["splits"][0].as_py()[0], training=True)]
    options = {"batch": 8, "world_size": 8, "passes": passes}
    for rank in range(8):
        ((_, steps),) = batches_of(small, rank=rank, decode_at="device", **options)
        ((_, expected),) = batches_of(small, rank=rank, **options)
        for one, other in zip(steps, expected, strict=True):
            assert one.weights.tolist() == other.weights.tolist()
            np.testing.assert_array_equal(one.flow, other.flow)
            np.testing.assert_array_equal(one.rgb, other.rgb)
