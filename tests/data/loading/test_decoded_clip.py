from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_square import moving_square
from pytest import MonkeyPatch

from twostream_ray.data import flow
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.decoded_clip import DecodedClip
from twostream_ray.data.protocols import PROTOCOLS, Protocol
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video import clips
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.views import View, protocol_views, view_keys
from twostream_ray.errors import DecodeError


@cache
def square(num_frames: int, contract: FlowContract) -> EncodedClip:
    return prepare_clip(moving_square(num_frames), contract, name="square")


def views_of(clip: EncodedClip, protocol: Protocol, config: SamplingConfig, crop_px: int = 48) -> list[View]:
    shape = (clip.num_frames, clip.height, clip.width)
    transforms = TransformConfig(crop_px=crop_px)
    return protocol_views(protocol, *shape, sampling_config=config, transform_config=transforms)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    protocol=st.builds(
        Protocol,
        name=st.just("drawn"),
        times=st.integers(1, 4),
        snippets=st.integers(1, 3),
        spread=st.booleans(),
        crops=st.sampled_from(["centre", "corners", "full"]),
        mirrored=st.booleans(),
    ),
    config=st.builds(
        SamplingConfig,
        flow_length=st.sampled_from([2, 4]),
        flow_stack=st.sampled_from(["centred", "forward", "bidirectional", "trajectory"]),
        flow_mean_subtraction=st.booleans(),
        max_stride_frames=st.integers(5, 7),
    ),
    coding=st.sampled_from(["signed127", "legacy255"]),
    num_frames=st.sampled_from([2, 9, 24]),
    crop_px=st.sampled_from([20, 64, 90]),
    short_side_px=st.none() | st.just(100),
    early=st.booleans(),
    data=st.data(),
)
def test_samples_are_bit_for_bit_those_that_are_decoded_one_by_one(  # type: ignore[no-untyped-def]
    protocol, config, coding, num_frames, crop_px, short_side_px, early, data
) -> None:
    contract = FlowContract(short_side_px=64, coding=coding)
    clip = square(num_frames, contract)
    transforms = TransformConfig(crop_px=crop_px, short_side_px=short_side_px)
    views = protocol_views(
        protocol, num_frames, clip.height, clip.width, sampling_config=config, transform_config=transforms
    )
    decoded = DecodedClip(clip, views, config=config, contract=contract)
    if early:
        decoded.decode()
    left = list(views)
    while left:
        count = data.draw(st.integers(1, len(left)))
        for view, rgb, stacks in zip(left[:count], *decoded.next_samples(count), strict=True):
            wanted_rgb, wanted_stacks = decode_sample(clip, view, config=config, contract=contract)
            np.testing.assert_array_equal(rgb, wanted_rgb)
            np.testing.assert_array_equal(stacks, wanted_stacks)
        left = left[count:]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("stack", ["centred", "trajectory"])
def test_each_frame_and_each_field_is_decoded_once(name: str, stack: str, monkeypatch: MonkeyPatch) -> None:
    contract = FlowContract(short_side_px=64)
    clip = square(24, contract)
    config = SamplingConfig(flow_length=4, num_snippets=2, flow_stack=stack)
    views = views_of(clip, PROTOCOLS[name], config)
    decoded_fields: Counter[bytes] = Counter()
    real, whole = flow.decode_field, clips.each_frame
    frames: list[int] = []

    def counted(content: bytes, **options: object) -> np.ndarray:
        decoded_fields[bytes(content)] += 1
        return real(content, **options)

    def seen(*arguments: object, **options: object):  # type: ignore[no-untyped-def]
        for index, frame in whole(*arguments, **options):
            frames.append(index)
            yield index, frame

    monkeypatch.setattr(flow, "decode_field", counted)
    monkeypatch.setattr(clips, "each_frame", seen)
    decoded = DecodedClip(clip, views, config=config, contract=contract)
    for count in [1, *[3] * ((len(views) - 1) // 3), (len(views) - 1) % 3]:
        if count:
            decoded.next_samples(count)
    assert set(decoded_fields.values()) == {1}
    assert sorted(frames) == sorted({int(time) for view in views for time in view.times})


@pytest.mark.parametrize("stack", ["centred", "bidirectional"])
@pytest.mark.parametrize("coding", ["signed127", "legacy255"])
def test_ten_crops_of_a_mirrored_clip_are_the_ten_crops_mirrored(
    stack: str, coding: str, monkeypatch: MonkeyPatch
) -> None:
    contract = FlowContract(short_side_px=64, coding=coding)
    config = SamplingConfig(flow_length=4, num_snippets=1, flow_stack=stack)
    rng = np.random.default_rng(0)
    fields = {f"{index}".encode(): rng.integers(1, 256, (2, 64, 80), np.uint8) for index in range(8)}
    mirrored = {content: field[:, :, ::-1].copy() for content, field in fields.items()}
    for field in mirrored.values():
        field[0] = flow.negated(field[0], contract)
    clip = EncodedClip(video=None, flow=[*fields], num_frames=9, height=64, width=80, fps=25.0)
    views = views_of(clip, replace(PROTOCOLS["paper_2014"], times=1), config)
    keys = view_keys(replace(PROTOCOLS["paper_2014"], times=1), sampling_config=config)

    def shown(levels: dict[bytes, np.ndarray]) -> dict[tuple[str, bool], np.ndarray]:
        monkeypatch.setattr(flow, "decode_field", lambda content, buffer=None: levels[content])
        decoded = DecodedClip(clip, views, config=config, contract=contract, want_rgb=False)
        _, stacks = decoded.next_samples(10)
        assert stacks is not None
        return {(key.crop, key.mirrored): one for key, one in zip(keys, stacks, strict=True)}

    plain, turned = shown(fields), shown(mirrored)
    opposite = {"top_left": "top_right", "top_right": "top_left"}
    opposite |= {"bottom_left": "bottom_right", "bottom_right": "bottom_left"}
    for (crop, is_mirrored), stacked in plain.items():
        np.testing.assert_array_equal(turned[opposite.get(crop, crop), not is_mirrored], stacked)


def test_what_no_later_view_needs_is_not_kept() -> None:
    contract = FlowContract(short_side_px=64)
    clip = square(24, contract)
    config = SamplingConfig(flow_length=2, num_snippets=1)
    views = views_of(clip, PROTOCOLS["tsn"], config)
    decoded = DecodedClip(clip, views, config=config, contract=contract)
    for _ in range(25):
        decoded.next_samples(10)
        assert len(decoded._frames) <= 1 and len(decoded._fields) <= 2
    assert not decoded._frames and not decoded._fields


@pytest.mark.parametrize(("stream", "column"), [("video", "video"), ("flow", "flow")])
def test_a_stream_that_was_not_read_is_named(stream: str, column: str) -> None:
    contract = FlowContract(short_side_px=64)
    clip = replace(square(9, contract), **{stream: None})
    config = SamplingConfig(flow_length=2)
    with pytest.raises(DecodeError, match=f"without its {column} column"):
        DecodedClip(clip, views_of(clip, PROTOCOLS["fast"], config), config=config, contract=contract)
    want = {"want_rgb": stream != "video", "want_flow": stream != "flow"}
    views = views_of(clip, PROTOCOLS["fast"], config)
    rgb, stacks = DecodedClip(clip, views, config=config, contract=contract, **want).next_samples(1)
    assert (rgb is None, stacks is None) == (stream == "video", stream == "flow")
