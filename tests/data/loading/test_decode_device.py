from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_flow_batches import batch_of, clip_of, decoded_by_cpu, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading import decode_device
from twostream_ray.data.loading.decode_device import decode_batch, decode_with_tensors, device_decoder_fault
from twostream_ray.data.sampling import FlowStack, SamplingConfig, training_times
from twostream_ray.data.snippets import EncodedFlow
from twostream_ray.data.transforms import TransformConfig, training_crop
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError

CPU = torch.device("cpu")


@st.composite
def batches(draw: st.DrawFn) -> EncodedFlow:
    """Clips of several sizes and lengths, in one or two views each."""
    stack: FlowStack = draw(st.sampled_from(["centred", "forward", "bidirectional"]))
    config = SamplingConfig(
        num_snippets=draw(st.integers(1, 4)),
        min_stride_frames=1,
        max_stride_frames=draw(st.integers(1, 6)),
        flow_length=draw(st.sampled_from([2, 4, 6] if stack != "forward" else [1, 2, 3, 5])),
        flow_stack=stack,
        flow_mean_subtraction=draw(st.booleans()),
    )
    crop_px = draw(st.integers(16, 40))
    transforms = TransformConfig(
        crop_px=crop_px,
        short_side_px=draw(st.none() | st.integers(crop_px, 3 * crop_px)),
        size_jitter=draw(st.sampled_from([0, 0.25, 0.9])),
    )
    contract = FlowContract(coding=draw(st.sampled_from(["signed127", "legacy255"])), short_side_px=32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clips = []
    for shape in draw(st.lists(st.sampled_from([(2, 32, 44), (9, 32, 44), (12, 50, 32), (5, 17, 23)]), min_size=1)):
        views = tuple(
            View(
                times=training_times(shape[0], config=config, rng=rng),
                crop=training_crop(*shape[1:], config=transforms, rng=rng),
                size=(transforms.crop_px, transforms.crop_px),
            )
            for _ in range(int(rng.integers(1, 3)))
        )
        clips.append((clip_of(*shape, contract), views))
    return EncodedFlow(
        clips=tuple(clips),
        size_px=transforms.crop_px,
        config=config,
        contract=contract,
        name="clip {}".format,
        threads=2,
    )


@pytest.mark.slow
@given(batch=batches())
@settings(max_examples=60, deadline=None)
def test_samples_are_bit_for_bit_those_of_the_cpu(batch: EncodedFlow) -> None:
    expected = decoded_by_cpu(batch)
    assert batch.shape == expected.shape
    np.testing.assert_array_equal(decode_batch(batch, CPU).numpy(), expected)
    out = torch.empty(batch.shape, dtype=torch.uint8)
    decode_with_tensors(batch, out)
    np.testing.assert_array_equal(out.numpy(), expected)


def decode_by_tensors(batch: EncodedFlow) -> np.ndarray:
    out = torch.empty(batch.shape, dtype=torch.uint8)
    decode_with_tensors(batch, out)
    return out.numpy()


WAYS = pytest.mark.parametrize(
    "decode", [lambda batch: decode_batch(batch, CPU).numpy(), decode_by_tensors], ids=["threads", "tensors"]
)


def calls_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    import torchcodec.decoders

    calls: list[int] = []
    real = torchcodec.decoders.decode_jpeg

    def counted(sources: list[torch.Tensor], **options: object) -> object:
        calls.append(len(sources))
        return real(sources, **options)

    monkeypatch.setattr(torchcodec.decoders, "decode_jpeg", counted)
    return calls


def test_a_batch_is_decoded_in_one_call_and_a_field_of_overlapping_stacks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of_the_decoder(monkeypatch)
    batch = batch_of(noise(), noise(12, 50, 32), views=1)
    decode_by_tensors(batch)
    times = [view.times.tolist() for _, (view,) in batch.clips]
    stacks = [
        {min(max(time + offset, 0), last) for time in of_clip for offset in range(-2, 2)}
        for of_clip, last in zip(times, (7, 10), strict=True)
    ]
    assert calls == [sum(map(len, stacks))]
    assert calls[0] < 2 * 2 * 4, "stacks 2 frames apart share fields"


def test_a_large_batch_is_decoded_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(*[noise()] * 7)
    calls = calls_of_the_decoder(monkeypatch)
    whole = decode_by_tensors(batch)
    monkeypatch.setattr(decode_device, "_FIELDS_PER_CALL", 12)
    np.testing.assert_array_equal(decode_by_tensors(batch), whole)
    assert sum(calls[1:]) == calls[0] and len(calls) > 3 and max(calls[1:]) < 12 + 8


@WAYS
@pytest.mark.parametrize("damage", [lambda content: content[:200], lambda content: b"\0" * 200, lambda content: b""])
def test_a_damaged_field_is_named_with_its_shard_and_row(decode, damage) -> None:  # type: ignore[no-untyped-def]
    clip = noise()
    assert clip.flow is not None
    broken = replace(clip, flow=[bytes(damage(content) if n == 4 else content) for n, content in enumerate(clip.flow)])
    batch = batch_of(clip, broken, clip)
    where = r"shards/0003\.parquet, row 18, clip 1\.avi: flow field 4 of a clip of 9 frames is damaged"
    with pytest.raises(DecodeError, match=where):
        decode(replace(batch, clips=(batch.clips[0], (broken, (every_field(),)), batch.clips[2])))


def every_field() -> View:
    config = SamplingConfig(num_snippets=2, min_stride_frames=4, max_stride_frames=4, flow_length=4)
    rng = np.random.default_rng(0)
    return View(
        times=training_times(9, config=config, rng=rng) * 0 + np.array([2, 6]),
        crop=training_crop(32, 44, config=TransformConfig(crop_px=24), rng=rng),
        size=(24, 24),
    )


def test_a_field_of_another_size_is_damaged() -> None:
    with pytest.raises(
        DecodeError, match=r"clip 0\.avi: flow field \d .* is damaged \(expected 64 x 44 px, got 100 x 32\)"
    ):
        decode_by_tensors(batch_of(replace(noise(), flow=noise(12, 50, 32).flow)))


@WAYS
def test_a_clip_without_flow_is_named(decode) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DecodeError, match=r"clip 0\.avi: flow requested"):
        decode(batch_of(replace(noise(), flow=None)))


def test_the_first_sample_of_a_batch_is_its_own() -> None:
    batch = batch_of(noise(), noise(12, 50, 32), views=2)
    np.testing.assert_array_equal(decode_by_tensors(batch.first_sample()), decode_by_tensors(batch)[:1])


def test_a_decoder_that_is_not_there_or_rounds_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchcodec.decoders

    assert decode_device._torchcodec_fault(CPU) is None and device_decoder_fault(CPU) is None

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to initialize nvjpeg with hardware backend: 2")

    monkeypatch.setattr(torchcodec.decoders, "decode_jpeg", missing)
    assert "no JPEG decoder on cpu (Failed to initialize nvjpeg" in str(decode_device._torchcodec_fault(CPU))
    grey = torch.full((1, 64, 48), 127, dtype=torch.uint8)
    monkeypatch.setattr(torchcodec.decoders, "decode_jpeg", lambda *_, **__: [grey])
    assert decode_device._torchcodec_fault(CPU) == "the JPEG decoder of cpu rounds differently from the CPU's"
