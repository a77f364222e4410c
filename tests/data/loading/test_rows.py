import numpy as np

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.lanes import Unit
from twostream_ray.data.loading.rows import decoded_block, encoded_block, rows_of
from twostream_ray.data.transforms import Crop
from twostream_ray.data.views import View

UNIT = Unit(pass_index=2, lane=3, shard=0, clips=(7, 9))
CLIPS = [
    EncodedClip(video=b"first", flow=[b"a", b"bb", b"ccc"], num_frames=4, height=16, width=18, fps=25.0),
    EncodedClip(video=b"second", flow=[b"d"], num_frames=2, height=32, width=34, fps=12.5),
]
VIEWS = [
    [
        View(times=np.array([0, 3]), crop=Crop(top=1, left=2, height=8, width=9, mirrored=True), size=(8, 8)),
        View(times=np.array([1, 1]), crop=Crop(top=0, left=5, height=7, width=6, mirrored=False), size=(8, 8)),
    ],
    [View(times=np.array([1, 0]), crop=Crop(top=0, left=0, height=32, width=34, mirrored=False), size=(8, 8))],
]


def test_encoded_clips_arrive_with_their_views_and_the_fields_that_these_need() -> None:
    first, second = rows_of(encoded_block(UNIT, CLIPS, views=VIEWS, fields=[[0, 2], [0]]))
    assert [(row.pass_index, row.lane, row.clip) for row in (first, second)] == [(2, 3, 7), (2, 3, 9)]
    for row, clip, views in zip((first, second), CLIPS, VIEWS, strict=True):
        assert row.encoded is not None and bytes(row.encoded.video or b"") == clip.video
        shape = (row.encoded.num_frames, row.encoded.height, row.encoded.width, row.encoded.fps)
        assert shape == (clip.num_frames, clip.height, clip.width, clip.fps)
        assert [(view.times.tolist(), view.crop) for view in row.views] == [
            (view.times.tolist(), view.crop) for view in views
        ]
    assert first.encoded is not None and isinstance(first.encoded.flow, dict)
    assert {index: bytes(field) for index, field in first.encoded.flow.items()} == {0: b"a", 2: b"ccc"}


def test_streams_that_were_not_read_are_none() -> None:
    flowless = [EncodedClip(video=b"v", flow=None, num_frames=4, height=16, width=18, fps=25.0)]
    unit = Unit(pass_index=0, lane=0, shard=0, clips=(7,))
    (row,) = rows_of(encoded_block(unit, flowless, views=VIEWS[:1], fields=[[]]))
    assert row.encoded is not None and row.encoded.flow is None
    videoless = [EncodedClip(video=None, flow=[b"a"] * 3, num_frames=4, height=16, width=18, fps=25.0)]
    (row,) = rows_of(encoded_block(unit, videoless, views=VIEWS[:1], fields=[[1]]))
    assert row.encoded is not None and row.encoded.video is None


def test_decoded_samples_arrive_as_their_bytes() -> None:
    row, _ = rows_of(encoded_block(UNIT, CLIPS, views=VIEWS, fields=[[0, 2], [0]]))
    flow = np.arange(24, dtype=np.uint8).reshape(2, 12)
    (arrived,) = rows_of(decoded_block(row, rgb=None, flow=flow))
    assert (arrived.pass_index, arrived.lane, arrived.clip, arrived.encoded) == (2, 3, 7, None)
    assert arrived.decoded[0] is None and arrived.decoded[1] is not None
    np.testing.assert_array_equal(np.frombuffer(arrived.decoded[1], np.uint8).reshape(2, 12), flow)
