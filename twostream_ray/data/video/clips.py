"""Frame-exact H.264 clips: encoding with short GOPs, random access to frames by index, and its verification."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.video import encoder
from twostream_ray.data.video.packets import packets_of
from twostream_ray.data.video.pictures import RgbConverter
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.errors import DecodeError
from twostream_ray.redaction import one_line

GROUP_OF_PICTURES = 6
"""GOP size of re-encoded clips: the most frames that a seek decodes."""

MIN_FRAMES = 2
"""A clip with fewer frames has no flow."""

_PROOF_FRAMES = 10
_PROOF_TOLERANCE_LEVELS = 3.0


class ClipWriter:
    """Encodes RGB frames so that every frame can be fetched exactly and fast: H.264, crf 20, GOP 6, no B-frames."""

    def __init__(self, *, width: int, height: int, fps: Fraction) -> None:
        """Width and height in px, both even."""
        self._file = io.BytesIO()
        self._container = av.open(self._file, mode="w", format="mp4")
        self._stream = self._container.add_stream(
            "libx264",
            rate=fps,
            options={
                "crf": "20",
                "preset": "veryfast",
                "tune": "fastdecode",
                "bf": "0",
                "threads": "1",
                "x264-params": encoder.X264_PARAMS,
            },
        )
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.gop_size = GROUP_OF_PICTURES
        self._stream.codec_context.thread_count = 1

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append one RGB frame (H, W, 3)."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def finish(self) -> bytes:
        """The encoded clip."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()


def fetch_frames(content: bytes | memoryview, indices: Sequence[int], *, num_frames: int) -> NDArray[np.uint8]:
    """Frames of a re-encoded clip by index, in the order asked for: (len(indices), H, W, 3) RGB uint8.

    Raises:
        DecodeError: as `each_frame`.
    """
    found = dict(each_frame(content, indices, num_frames=num_frames))
    return np.stack([found[index] for index in indices])


def each_frame(
    content: bytes | memoryview, indices: Sequence[int], *, num_frames: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Wanted frames of a re-encoded clip, each once, ascending: (index, RGB (H, W, 3) uint8).

    Only for clips that `ClipWriter` wrote: seeking is wrong on many other files.

    Raises:
        DecodeError: the clip does not have num_frames frames, or cannot be decoded.
    """
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0 or wanted[-1] >= num_frames:
        raise DecodeError(f"frame indices must be in [0, {num_frames}), got {list(indices)}")
    try:
        view = memoryview(content)
        packets = packets_of(view)
        if len(packets.sizes) != num_frames:
            raise DecodeError(f"expected a clip of {num_frames} frames, its video has {len(packets.sizes)}")
        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata = packets.extradata
        decoder.thread_count = 1
        convert = RgbConverter()
        position = num_frames
        for index in wanted:
            key = int(packets.keys[np.searchsorted(packets.keys, index, side="right") - 1])
            if not key <= position < index:
                decoder.flush_buffers()
                position = key - 1
            picture = None
            for number in range(position + 1, index + 1):
                start = packets.starts[number]
                packet = av.Packet(view[start : start + packets.sizes[number]])
                packet.pts = number
                picture = next(iter(decoder.decode(packet)), None)
            position = index
            if picture is None or picture.pts != index:
                raise DecodeError(f"expected frame {index} of a clip, the decoder returned another")
            yield index, convert(picture)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(f"frames {list(indices)} of a clip could not be decoded ({one_line(error)})") from error


def prove_seeking(
    content: bytes | memoryview, *, num_frames: int, on_progress: Callable[[], object] | None = None
) -> None:
    """Check that frames fetched in random order equal those decoded in order, and that none is missing.

    `on_progress` is called again and again.

    Raises:
        DecodeError: a fetched frame is not the one decoded in order.
    """
    draw = np.random.default_rng(num_frames).permutation(num_frames)[:_PROOF_FRAMES]
    indices = list(dict.fromkeys([*draw.tolist(), num_frames - 1, 0]))
    fetched = dict(zip(indices, fetch_frames(content, indices, num_frames=num_frames), strict=True))
    decoded = 0
    convert = RgbConverter()
    for index, picture in enumerate(FrameStream(content, on_packet=on_progress).pictures()):
        decoded += 1
        if on_progress is not None:
            on_progress()
        if index in fetched:
            difference = float(np.abs(convert(picture).astype(np.int16) - fetched[index]).mean())
            if difference > _PROOF_TOLERANCE_LEVELS:
                raise DecodeError(
                    f"frame {index} fetched by index differs from the one in order by {difference:.1f} levels"
                )
    if decoded != num_frames:
        raise DecodeError(f"{num_frames} frames were encoded, {decoded} come back")
