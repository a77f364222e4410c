import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.lanes import Unit
from twostream_ray.data.loading.packed_clip import PackedClip
from twostream_ray.data.loading.rows import encoded_block, rows_of
from twostream_ray.data.transforms import Crop
from twostream_ray.data.views import View

CROPS = st.builds(
    Crop,
    top=st.integers(0, 99),
    left=st.integers(0, 99),
    height=st.integers(1, 99),
    width=st.integers(1, 99),
    mirrored=st.booleans(),
)


@settings(deadline=None)
@given(
    video=st.one_of(st.none(), st.binary(min_size=1, max_size=50)),
    flow=st.one_of(st.none(), st.lists(st.binary(max_size=20), min_size=1, max_size=6)),
    crops=st.lists(CROPS, min_size=1, max_size=3),
    num_times=st.integers(1, 4),
)
def test_a_clip_comes_out_as_it_was_packed(
    video: bytes | None, flow: list[bytes] | None, crops: list[Crop], num_times: int
) -> None:
    clip = EncodedClip(video=video, flow=flow, num_frames=7, height=20, width=30, fps=29.97)
    views = [
        View(times=np.arange(num_times) + number, crop=crop, size=(9 + number, 7)) for number, crop in enumerate(crops)
    ]
    fields = list(range(0, len(flow or ()), 2))
    unit = Unit(pass_index=0, lane=0, shard=0, clips=(5, 6))
    # The second row of two: nothing in it begins at the start of its buffer.
    *_, row = rows_of(encoded_block(unit, [clip, clip], views=[views, views], fields=[fields, fields]))
    assert row.packed is not None
    room = np.zeros(row.packed.nbytes + 8, np.uint8)
    row.packed.write(room)
    arrived = PackedClip.read(room[: row.packed.nbytes])
    for packed in (row.packed, arrived):
        encoded = packed.encoded()
        assert (encoded.num_frames, encoded.height, encoded.width, encoded.fps) == (7, 20, 30, 29.97)
        assert (None if encoded.video is None else bytes(encoded.video)) == video
        assert {index: bytes(encoded.flow[index]) for index in (fields if encoded.flow else [])} == {
            index: (flow or [])[index] for index in fields
        }
        assert [(view.times.tolist(), view.crop, view.size) for view in packed.views()] == [
            (view.times.tolist(), view.crop, view.size) for view in views
        ]
