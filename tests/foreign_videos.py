"""Small videos as cameras, editors and recorders write them, made here: what our own writer never does."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.video.raw_video import FrameStream


def pictures(count: int, *, width: int = 96, height: int = 64) -> Iterator[NDArray[np.uint8]]:
    """A smooth pattern that moves by two pixels a frame."""
    noise = np.random.default_rng(0).integers(0, 255, (height, 2 * width + 2 * count, 3), dtype=np.uint8)
    pattern = cv2.GaussianBlur(noise, (0, 0), 3)
    for number in range(count):
        yield np.ascontiguousarray(pattern[:, 2 * number : 2 * number + width])


def corners(*, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """Red top left, green top right, blue bottom right, black bottom left."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    picture[: height // 2, width // 2 :, 1] = 255
    picture[height // 2 :, width // 2 :, 2] = 255
    return picture


@dataclass(frozen=True, kw_only=True)
class Packet:
    """What a container holds of a frame."""

    content: bytes
    pts: int
    dts: int
    is_key: bool
    duration: int = 1


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Packets of a stream, and a file that it can be copied from."""

    file: bytes
    packets: list[Packet]
    time_base: Fraction


def encoded(
    codec: str,
    frames: Iterable[NDArray[np.uint8]],
    *,
    container: str = "matroska",
    rate: int = 25,
    pixels: str = "yuv420p",
    prepare: Callable[[av.VideoStream], object] | None = None,
    muxer: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """Frames by one of FFmpeg's encoders."""
    file = io.BytesIO()
    with av.open(file, mode="w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate, options={name.replace("_", "-"): x for name, x in options.items()})
        for number, picture in enumerate(frames):
            if not number:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pixels
                if prepare is not None:
                    prepare(stream)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def taken_apart(file: bytes) -> Coded:
    """The packets of a video."""
    with av.open(io.BytesIO(file)) as container:
        (stream,) = container.streams.video
        packets = [
            Packet(
                content=bytes(packet),
                pts=packet.pts,
                dts=packet.dts,
                is_key=packet.is_keyframe,
                duration=packet.duration,
            )
            for packet in container.demux(stream)
            if packet.size
        ]
        return Coded(file=file, packets=packets, time_base=stream.time_base)


def put_together(coded: Coded, packets: Iterable[Packet], *, container: str) -> bytes:
    """Packets in another container, or changed ones in the same."""
    file = io.BytesIO()
    with av.open(io.BytesIO(coded.file)) as source, av.open(file, mode="w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for one in packets:
            packet = av.Packet(one.content)
            packet.pts, packet.dts, packet.time_base = one.pts, one.dts, coded.time_base
            packet.duration, packet.is_keyframe, packet.stream = one.duration, one.is_key, stream
            output.mux(packet)
    return file.getvalue()


def from_key(packets: list[Packet], number: int) -> list[Packet]:
    """What is left of a stream that is cut in front of one of its key pictures."""
    return packets[[index for index, packet in enumerate(packets) if packet.is_key][number] :]


@dataclass
class _Bits:
    text: list[str] = field(default_factory=list)

    def put(self, value: int, count: int) -> "_Bits":
        self.text.append(f"{value:0{count}b}" if count else "")
        return self

    def golomb(self, *values: int) -> "_Bits":
        for value in values:
            self.put(value + 1, 2 * (value + 1).bit_length() - 1)
        return self

    def aligned(self, fill: str = "0") -> bytes:
        text = "".join(self.text)
        text += fill[: -len(text) % 8] + "0" * max(0, -len(text) % 8 - len(fill))
        return int(text, 2).to_bytes(len(text) // 8, "big")


def field_coded(num_frames: int) -> list[bytes]:
    """H.264 of 32 x 32 px whose fields are coded apart, uncompressed: a NAL stream for each field, as AVCHD cameras do.

    Frame k is of luma 40 + 4 k above, and 2 more below in each pair of lines.
    """
    sequence = _Bits().put(77, 8).put(0, 8).put(30, 8).golomb(0, 0, 2, 1).put(0, 1).golomb(1, 0)
    sequence = sequence.put(0, 1).put(0, 1).put(1, 1).put(0, 2)
    picture = _Bits().golomb(0, 0).put(0, 2).golomb(0, 0, 0).put(0, 3).golomb(0, 0, 0).put(0, 3)
    headers = [b"\x67" + sequence.aligned("1"), b"\x68" + picture.aligned("1")]
    fields = []
    for number in range(2 * num_frames):
        frame, bottom = divmod(number, 2)
        is_first = number == 0
        slice_ = _Bits().golomb(0, 7, 0).put(frame % 16, 4).put(1, 1).put(bottom, 1)
        slice_ = slice_.golomb(0).put(0, 2) if is_first else slice_.put(0, 1)
        slice_.golomb(0)
        content = b""
        for block in range(2):
            slice_ = (slice_ if not block else _Bits()).golomb(25)
            content += slice_.aligned() + bytes([40 + 4 * frame + 2 * bottom]) * 256 + b"\x80" * 128
        units = [*(headers if is_first else []), bytes([0x65 if is_first else 0x21]) + content + b"\x80"]
        fields.append(b"".join(b"\0\0\0\1" + unit for unit in units))
    return fields


def fields_in(container: str, fields: list[bytes]) -> bytes:
    """A packet for each field."""
    coded = Coded(file=b"".join(fields), packets=[], time_base=Fraction(1, 50))
    packets = [Packet(content=one, pts=index, dts=index, is_key=True) for index, one in enumerate(fields)]
    return put_together(coded, packets, container=container)


def uncoded_plane(tick: int, *, rate: int = 25) -> bytes:
    """A video object plane of MPEG-4 that says only: nothing new."""
    bits = _Bits().put(1, 2).put(0, 1).put(1, 1).put(tick % rate, (rate - 1).bit_length()).put(1, 1).put(0, 1)
    return b"\0\0\1\xb6" + bits.aligned("01111111")


def decoded(video: bytes) -> tuple[list[NDArray[np.uint8]], tuple[str, ...]]:
    """All frames of a video, and what is to be known about it."""
    stream = FrameStream(video)
    frames = list(stream)
    return frames, stream.notes


def count(video: bytes) -> int:
    """Frames of a video."""
    return len(decoded(video)[0])
