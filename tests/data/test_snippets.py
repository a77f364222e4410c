from dataclasses import replace

import numpy as np
import pytest
from moving_square import moving_square

from twostream_ray.data import flow, snippets
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_rgb
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import Crop
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError

CONTRACT = FlowContract(short_side_px=64)


@pytest.fixture(scope="module")
def clip() -> EncodedClip:
    """A bright square that moves 2 px to the right and 1 px down per frame, on texture."""
    return prepare_clip(moving_square(24), CONTRACT, name="square")


def view(*times: int, mirrored: bool = False) -> View:
    return View(times=np.array(times), crop=Crop(top=0, left=0, height=64, width=64, mirrored=mirrored), size=(64, 64))


def stack(length: int, kind: str = "centred", *, less_mean: bool = False) -> SamplingConfig:
    return SamplingConfig(flow_length=length, flow_stack=kind, flow_mean_subtraction=less_mean)


def with_fields(clip: EncodedClip, fields: list[np.ndarray]) -> EncodedClip:
    """The clip with other flow; fields (H, W, 2) in px."""
    contract = replace(CONTRACT, jpeg_quality=100)
    return replace(clip, flow=[flow.encode_field(field.astype(np.float32), contract) for field in fields])


def uniform_fields(clip: EncodedClip) -> EncodedClip:
    """Field k says k / 2 px to the right and one down, everywhere."""
    return with_fields(clip, [np.full((64, 80, 2), (k / 2, 1.0)) for k in range(23)])


def test_both_streams_see_the_same_square_at_the_same_place(clip: EncodedClip) -> None:
    rgb = decode_rgb(clip, view(10))[0]
    shown = snippets.flow_snippets(clip, view(10), config=stack(2), contract=CONTRACT)[0]
    bright = np.median(np.argwhere(rgb.mean(axis=0) > 145), axis=0)
    moving = np.median(np.argwhere(shown[2] > 128 + 9), axis=0)  # x of the field after the centre frame
    np.testing.assert_allclose(bright, moving, atol=4)


def test_channels_are_x_then_y_of_each_field(clip: EncodedClip) -> None:
    shown = snippets.flow_snippets(clip, view(10), config=stack(10), contract=CONTRACT)[0]
    assert shown.shape == (20, 64, 64)
    inside = shown[10:12, 17:27, 29:39].reshape(2, -1)  # field 10 -> 11, inside the square at frame 10
    x, y = flow.dequantise(np.median(inside, axis=1).astype(np.uint8), CONTRACT)
    assert x == pytest.approx(2, abs=0.3)
    assert y == pytest.approx(1, abs=0.3)


def test_a_mirror_turns_both_streams_and_negates_x_alone(clip: EncodedClip) -> None:
    plain = decode_rgb(clip, view(10))
    turned = decode_rgb(clip, view(10, mirrored=True))
    np.testing.assert_array_equal(turned, plain[..., ::-1])
    fields = snippets.flow_snippets(clip, view(10), config=stack(4), contract=CONTRACT)[0].astype(int)
    mirrored = snippets.flow_snippets(clip, view(10, mirrored=True), config=stack(4), contract=CONTRACT)[0]
    np.testing.assert_array_equal(mirrored[0::2], 256 - fields[0::2, :, ::-1])
    np.testing.assert_array_equal(mirrored[1::2], fields[1::2, :, ::-1])


def test_a_bidirectional_stack_is_forward_from_the_frame_and_negated_before_it(clip: EncodedClip) -> None:
    def shown(times: list[int], config: SamplingConfig) -> np.ndarray:
        return snippets.flow_snippets(clip, view(*times), config=config, contract=CONTRACT)

    both = shown([10], stack(6, "bidirectional"))[0]
    ahead = shown([10], stack(3, "forward"))[0]
    np.testing.assert_array_equal(both[:6], ahead)
    before = shown([7, 8, 9], stack(1, "forward"))
    np.testing.assert_array_equal(both[6:], 256 - np.concatenate([before[2], before[1], before[0]]).astype(int))


def test_along_a_uniform_translation_trajectories_stack_what_forward_does(clip: EncodedClip) -> None:
    moved = uniform_fields(clip)
    forward, along = (
        snippets.flow_snippets(moved, view(4, 9), config=stack(5, kind), contract=CONTRACT)
        for kind in ("forward", "trajectory")
    )
    np.testing.assert_array_equal(along, forward)
    assert len({int(forward[0, 2 * k].mean()) for k in range(5)}) == 5


def test_trajectories_are_followed_on_the_stored_frame_before_it_is_cropped(clip: EncodedClip) -> None:
    fields = np.zeros((23, 64, 80, 2))
    fields[5, ..., 0] = 16  # everything jumps 16 px to the right,
    fields[6, :, 72:, 0] = 8  # to where the right edge moves on; the crop ends before it
    jumped = with_fields(clip, list(fields))
    shown = snippets.flow_snippets(jumped, view(5), config=stack(2, "trajectory"), contract=CONTRACT)
    x = flow.dequantise(shown[0, 2], CONTRACT)
    assert np.abs(x[:, 58:] - 8).max() < 0.3
    assert np.abs(x[:, :54]).max() < 0.3


@pytest.mark.parametrize("kind", ["centred", "forward", "bidirectional", "trajectory"])
def test_mean_subtraction_leaves_nothing_of_a_camera_that_pans(clip: EncodedClip, kind: str) -> None:
    shown = snippets.flow_snippets(
        uniform_fields(clip), view(8, 11), config=stack(4, kind, less_mean=True), contract=CONTRACT
    )
    assert (shown == 128).all()


@pytest.mark.parametrize("less_mean", [False, True])
@pytest.mark.parametrize("kind", ["centred", "forward", "bidirectional", "trajectory"])
def test_a_mirror_negates_x_alone_in_every_kind_of_stack(clip: EncodedClip, kind: str, less_mean: bool) -> None:
    plain, mirrored = (
        snippets.flow_snippets(
            clip,
            view(10, mirrored=turned),
            config=stack(4, kind, less_mean=less_mean),
            contract=CONTRACT,
        )[0].astype(int)
        for turned in (False, True)
    )
    np.testing.assert_array_equal(mirrored[0::2], 256 - plain[0::2, :, ::-1])
    np.testing.assert_array_equal(mirrored[1::2], plain[1::2, :, ::-1])
    assert len(np.unique(plain)) > 10


@pytest.mark.parametrize("kind", ["centred", "forward", "bidirectional", "trajectory"])
def test_the_needed_fields_suffice_and_none_is_superfluous(clip: EncodedClip, kind: str) -> None:
    config, times = stack(6, kind), np.array([0, 12, 23])
    needed = snippets.needed_fields(times, config=config, num_frames=clip.num_frames)
    trimmed = replace(clip, flow={index: clip.flow[index] for index in needed})
    whole, cut = (
        snippets.flow_snippets(some, view(*times), config=config, contract=CONTRACT) for some in (clip, trimmed)
    )
    np.testing.assert_array_equal(cut, whole)
    for index in needed:
        with pytest.raises(DecodeError, match=f"flow field {index} "):
            fewer = {other: content for other, content in trimmed.flow.items() if other != index}
            snippets.flow_snippets(replace(trimmed, flow=fewer), view(*times), config=config, contract=CONTRACT)


def test_fields_shared_by_snippets_are_decoded_once(clip: EncodedClip, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    real = flow.decode_field

    def counted(content: bytes, **options: object) -> object:
        decoded.append(content)
        return real(content, **options)

    monkeypatch.setattr(flow, "decode_field", counted)
    snippets.flow_snippets(clip, view(8, 10, 12), config=stack(10), contract=CONTRACT)
    assert len(decoded) == 14  # fields 3..16


def test_a_damaged_field_is_an_error_not_a_skipped_one(clip: EncodedClip) -> None:
    damaged = replace(clip, flow=[b"no jpeg"] * 23)
    with pytest.raises(DecodeError, match="flow field 9 of a clip of 24 frames is damaged"):
        snippets.flow_snippets(damaged, view(10), config=stack(2), contract=CONTRACT)


def test_a_batch_without_a_stream_has_none_of_it() -> None:
    rgb = np.zeros((1, 3, 4, 4), np.uint8)
    batch = snippets.collate([(rgb, None)] * 3, labels=[0, 1, 2], weights=[1, 1, 0], clip_positions=[4, 5, 6], total=2)
    assert batch.rgb is not None and batch.rgb.shape == (3, 1, 3, 4, 4)
    assert batch.flow is None and batch.weights.sum() == batch.total
