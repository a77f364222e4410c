"""Encoded video into frames and back: exact decoding in order, encoding that seeks exactly, frames by index."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from twostream_ray.data import containers
from twostream_ray.data.packets import packets_of
from twostream_ray.errors import DecodeError

av.logging.set_level(av.logging.PANIC)

GROUP_OF_PICTURES = 6
"""Frames from one key frame to the next in re-encoded clips: what a seek decodes at most."""

MIN_FRAMES = 2
"""A clip with fewer frames has no flow."""

_PLACEHOLDER_BYTES = 8
_NEVER_ZERO = {"h264", "hevc", "mpeg4", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1", "gif"}
_HOLE = bytes(64)
"""These codecs write no such run, but decoders take it for pictures; it is what a hole in a file reads as."""
_NO_OTHER_PLACES = {"protocol_whitelist": "none"}
_PROOF_FRAMES = 10
_PROOF_TOLERANCE_LEVELS = 3.0
_MAX_PIXELS = 64_000_000
_JPEG = b"\xff\xd8"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip as shards hold it; a stream that is not wanted is None."""

    video: bytes | memoryview | None
    """H.264 in mp4 that seeks exactly."""

    flow: Sequence[bytes | memoryview] | Mapping[int, bytes | memoryview] | None
    """Grey JPEGs, x stacked over y, by index; field k of num_frames - 1 lies between frames k and k + 1."""

    num_frames: int
    """Frames that can be decoded."""

    height: int
    """Pixels."""

    width: int
    """Pixels."""

    fps: float
    """Mean frames per second of the source."""


class FrameStream:
    """The frames of an encoded video, decoded once and in order, as upright RGB (H, W, 3) uint8.

    Iterating raises DecodeError as soon as the bytes cannot be decoded, and at the end when frames are missing: the
    decoded count is held against the container's packets and header. One frame less is what DivX's packed B-frames
    leave, whose placeholders the file then has (HMDB51, some of UCF101); more is a truncated or damaged file. MPEG
    program and transport streams have neither count nor index: cut between two frames they cannot be told from whole,
    nor can a GIF that lost a frame in its middle.
    """

    def __init__(self, content: bytes | memoryview | Path, *, name: str = "video") -> None:
        """Open a video; of a file, parts are read as they are needed.

        It cannot make us open other files or addresses, as playlists and session descriptions try.

        Raises:
            DecodeError: the bytes are no video, or not all of one, or a picture is larger than 64 megapixels.
        """
        self._name = name
        with ExitStack() as opened:
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            file: Any = opened.enter_context(content.open("rb") if isinstance(content, Path) else io.BytesIO(content))
            try:
                containers.require_whole(file, name=name)
                file.seek(0)
                self._container = opened.enter_context(av.open(file, mode="r", options=_NO_OTHER_PLACES))
                self._stream = self._container.streams.video[0]
            except IndexError:
                raise DecodeError(f"{name}: a video stream was wanted, the file has none") from None
            except (av.FFmpegError, ValueError, OSError) as error:
                raise DecodeError(f"{name}: a video was wanted, {size} bytes are none ({_one_line(error)})") from error
            if self._stream.codec_context is None:
                raise DecodeError(f"{name}: a video in a known codec was wanted, the file names none")
            if self._stream.codec_context.width * self._stream.codec_context.height > _MAX_PIXELS:
                raise DecodeError(
                    f"{name}: frames of at most {_MAX_PIXELS} pixels were wanted, the file has larger ones"
                )
            self._opened = opened.pop_all()
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.fps = Fraction(rate).limit_denominator(1001 * 240)
        """Mean frames per second."""
        self.announced = self._stream.frames
        """Frames that the header speaks of; 0 where it says nothing."""

    def close(self) -> None:
        """Let go of the file; iterating to the end does."""
        self._opened.close()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        convert = _RgbConverter()
        return (convert(frame) for frame in self.pictures())

    def pictures(self) -> Iterator[av.VideoFrame]:
        """The same frames before their conversion to RGB, for whoever looks at a few of them only."""
        packets = hidden = decoded = placeholders = 0
        codec = self._stream.codec_context.name
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    packets += not packet.is_discard
                    placeholders += codec == "mpeg4" and packet.size <= _PLACEHOLDER_BYTES
                    if codec in _NEVER_ZERO and _HOLE in bytes(packet):
                        raise DecodeError(
                            f"{self._name}: frame {decoded} or one soon after is damaged: there are zeros"
                        )
                    hidden += packet.is_discard  # by an edit list: the header counts it, players do not show it
                for frame in packet.decode():
                    decoded += 1
                    if frame.is_corrupt:
                        raise DecodeError(f"{self._name}: frame {decoded - 1} is damaged")
                    yield frame
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise DecodeError(
                f"{self._name}: all frames were wanted, decoding broke after {decoded} of {self._stream.frames or '?'} "
                f"({_one_line(error)})"
            ) from error
        finally:
            announced = max(packets, self.announced - hidden)
            self.close()
        if decoded < announced - min(1, placeholders):
            raise DecodeError(f"{self._name}: the file announces {announced} frames, {decoded} could be decoded")


class ImageSequence:
    """Frames that exist as images, in order, as RGB (H, W, 3) uint8; like a FrameStream at 25 frames a second."""

    def __init__(self, images: Sequence[bytes], *, name: str) -> None:
        self._images, self._name = images, name
        self.fps = Fraction(25)
        """Images do not say how fast they follow one another."""
        self.announced = len(images)
        """Images that there are."""

    def close(self) -> None:
        """Nothing is open."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        shape = None
        for number, content in enumerate(self._images, start=1):
            frame = read_image(content, name=f"{self._name}, frame {number}")
            shape = shape or frame.shape
            if frame.shape != shape:
                raise DecodeError(
                    f"{self._name}: frames of one size were wanted, frame {number} is "
                    f"{frame.shape[1]}x{frame.shape[0]} px, the first {shape[1]}x{shape[0]} px"
                )
            yield frame


def read_image(content: bytes, *, name: str, grey: bool = False) -> NDArray[np.uint8]:
    """A JPEG or PNG: RGB (H, W, 3), or grey (H, W) uint8.

    Raises:
        DecodeError: the bytes are no such picture, not a whole one, or one of more than 64 megapixels.
    """
    try:
        if content.startswith(_JPEG):
            # FFmpeg fills up a truncated JPEG and calls it whole.
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            _refuse_more_pixels(height * width, name=name)
            picture: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                content, colorspace="GRAY" if grey else "RGB", fastdct=False
            )
            return picture[:, :, 0] if grey else picture
        with av.open(io.BytesIO(content), mode="r") as container:
            size = container.streams.video[0].codec_context
            _refuse_more_pixels(size.width * size.height, name=name)
            frame = next(container.decode(video=0))
    except (av.FFmpegError, ValueError, IndexError, OSError, StopIteration) as error:
        raise DecodeError(f"{name}: an image was wanted, {len(content)} bytes are none ({_one_line(error)})") from error
    if frame.is_corrupt:
        raise DecodeError(f"{name}: the image is damaged")
    if not grey:
        return _RgbConverter()(frame)
    plane: NDArray[np.uint8] = frame.reformat(format="gray").to_ndarray()
    return plane


def _refuse_more_pixels(pixels: int, *, name: str) -> None:
    if pixels > _MAX_PIXELS:
        raise DecodeError(f"{name}: an image of at most {_MAX_PIXELS} pixels was wanted, this has {pixels}")


class _RgbConverter:
    """Frames -> upright RGB arrays; keeps the scaler, whose making costs more than a small frame's conversion."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray().astype(np.uint8, copy=False)
        quarter_turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, quarter_turns)) if quarter_turns else picture


def _one_line(error: Exception) -> str:
    # Not str() of PyAV's errors: it ends with the last line of FFmpeg's log, which may be about another file.
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:160] or type(error).__name__


class ClipWriter:
    """Encodes RGB frames so that every frame can be fetched exactly and fast: H.264, crf 20, GOP 6, no B-frames."""

    def __init__(self, *, width: int, height: int, fps: Fraction) -> None:
        """Width and height in px, both even."""
        self._file = io.BytesIO()
        self._container = av.open(self._file, mode="w", format="mp4")
        self._stream = self._container.add_stream(
            "libx264",
            rate=fps,
            options={"crf": "20", "preset": "veryfast", "tune": "fastdecode", "bf": "0", "threads": "1"},
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
        raise DecodeError(f"frames in [0, {num_frames}) were wanted, got {list(indices)}")
    try:
        view = memoryview(content)
        packets = packets_of(view)
        if len(packets.sizes) != num_frames:
            raise DecodeError(f"a clip of {num_frames} frames was wanted, its video has {len(packets.sizes)}")
        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata = packets.extradata
        decoder.thread_count = 1
        convert = _RgbConverter()
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
                raise DecodeError(f"frame {index} of a clip was wanted, the decoder gives another")
            yield index, convert(picture)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(f"frames {list(indices)} of a clip could not be decoded ({_one_line(error)})") from error


def prove_seeking(content: bytes | memoryview, *, num_frames: int) -> None:
    """Hold frames fetched in random order against the clip decoded in order, and count them.

    Raises:
        DecodeError: a fetched frame is not the one decoded in order.
    """
    draw = np.random.default_rng(num_frames).permutation(num_frames)[:_PROOF_FRAMES]
    indices = list(dict.fromkeys([*draw.tolist(), num_frames - 1, 0]))
    fetched = dict(zip(indices, fetch_frames(content, indices, num_frames=num_frames), strict=True))
    decoded = 0
    convert = _RgbConverter()
    for index, picture in enumerate(FrameStream(content).pictures()):
        decoded += 1
        if index in fetched:
            difference = float(np.abs(convert(picture).astype(np.int16) - fetched[index]).mean())
            if difference > _PROOF_TOLERANCE_LEVELS:
                raise DecodeError(
                    f"frame {index} fetched by index differs from the one in order by {difference:.1f} levels"
                )
    if decoded != num_frames:
        raise DecodeError(f"{num_frames} frames were encoded, {decoded} come back")
