"""Conversion of video frames and image files to upright RGB arrays (display matrix, EXIF orientation)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import av
import numpy as np
import simplejpeg
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from twostream_ray.errors import DecodeError
from twostream_ray.redaction import one_line

av.logging.set_level(av.logging.PANIC)

MAX_PIXELS = 64_000_000
"""Of a frame or image."""

_IMAGES = "png_pipe,apng,bmp_pipe,webp_pipe,tiff_pipe,gif_pipe,jpeg_pipe"
_JPEG = b"\xff\xd8"


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
            return picture[:, :, 0] if grey else _exif_orientation(content).apply(picture)
        with open_media(io.BytesIO(content), formats=_IMAGES) as container:
            size = container.streams.video[0].codec_context
            _refuse_more_pixels(size.width * size.height, name=name)
            frame = next(container.decode(video=0))
    except (av.FFmpegError, ValueError, IndexError, OSError, StopIteration) as error:
        raise DecodeError(f"{name}: not a readable image, {len(content)} bytes ({one_line(error)})") from error
    if frame.is_corrupt:
        raise DecodeError(f"{name}: the image is damaged")
    if not grey:
        return RgbConverter()(frame)
    plane: NDArray[np.uint8] = frame.reformat(format="gray").to_ndarray()
    return plane


def _refuse_more_pixels(pixels: int, *, name: str) -> None:
    if pixels > MAX_PIXELS:
        raise DecodeError(f"{name}: an image may have at most {MAX_PIXELS} pixels, this has {pixels}")


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight ways to hold a picture: transposed first, then mirrored."""

    transposed: bool
    mirrored: bool
    """Left becomes right."""
    flipped: bool
    """Top becomes bottom."""

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """The one nearest to the frame's display matrix: p' = a p + c q, q' = b p + d q (ISO 14496-12, 8.5.3)."""
        try:
            found = frame.side_data.get(Type.DISPLAYMATRIX)
        except ValueError:  # PyAV does not know all kinds of side data, and then shows none
            quarter_turns = round(frame.rotation / 90) % 4
            return cls(quarter_turns % 2 == 1, quarter_turns in (2, 3), quarter_turns in (1, 2))
        if found is None:
            return _UPRIGHT
        a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a coded picture (H, W, 3) upright."""
        if self == _UPRIGHT:
            return picture
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1])


_UPRIGHT = Orientation(False, False, False)
_BY_EXIF = {
    2: Orientation(False, True, False),
    3: Orientation(False, True, True),
    4: Orientation(False, False, True),
    5: Orientation(True, False, False),
    6: Orientation(True, True, False),
    7: Orientation(True, True, True),
    8: Orientation(True, False, True),
}
_NOTES_OF_JPEG = {bytes([marker]) for marker in (*range(0xE0, 0xF0), 0xFE)}
_EXIF, _EXIF_ORIENTATION = b"Exif\0\0", 0x112


def _exif_orientation(content: bytes) -> Orientation:
    """How a JPEG's camera was held (Exif 2.32, 4.6.4 A): decoders of JPEG leave that to the viewer."""
    at = 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] in _NOTES_OF_JPEG:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        tiff = content[at + 4 + len(_EXIF) : end]
        if content[at + 1] == 0xE1 and content[at + 4 : end].startswith(_EXIF):
            return _BY_EXIF.get(_short_of_tiff(tiff, _EXIF_ORIENTATION), _UPRIGHT)
        at = end
    return _UPRIGHT


def _short_of_tiff(tiff: bytes, tag: int) -> int:
    """A 16-bit value of the first directory of a TIFF file; 0 is none."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[at : at + 2], order) == tag:
            return int.from_bytes(tiff[at + 8 : at + 10], order)
    return 0


class RgbConverter:
    """Frames -> upright RGB arrays; keeps the scaler, whose making costs more than a small frame's conversion."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, as players show it."""
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray().astype(np.uint8, copy=False)
        return Orientation.of(frame).apply(picture)


def open_media(file: Any, *, formats: str) -> Any:
    """Open a file as one of FFmpeg's formats named; whatever it says, no other file or address is opened.

    Raises:
        av.FFmpegError, ValueError: it has none of these formats.
    """
    file.seek(0)
    options = {"protocol_whitelist": "none", "format_whitelist": formats, "max_pixels": str(MAX_PIXELS)}
    return av.open(file, mode="r", options=options)
