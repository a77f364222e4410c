"""Versions of the encoder; that the same versions give the same bytes is tested in tests/data/test_equal_bytes.py."""

from twostream_ray.data.video import encoder


def test_shards_of_other_encoders_are_counted_by_their_versions() -> None:
    now = dict(encoder.versions())
    assert encoder.version_notes([now, now]) == []
    older = {**now, "x264": "core 157", "ffmpeg": "7.1"}
    (first, second) = encoder.version_notes([now, older, None, older])
    assert first.startswith(f"2 of 4 shards were encoded by x264 core 157, ffmpeg 7.1 (now {now['x264']}, ")
    assert second.startswith("1 of 4 shards were encoded by versions that their records do not name and stay as they")
