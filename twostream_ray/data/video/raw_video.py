"""Decoder for untrusted videos and image sequences: sequential, complete, into upright RGB frames.

References in a file to other files or addresses, as in playlists, are never followed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from enum import StrEnum
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from twostream_ray.data.video import containers
from twostream_ray.data.video.bitstreams import PacketCounts
from twostream_ray.data.video.pictures import MAX_PIXELS, Orientation, RgbConverter, open_media, read_image
from twostream_ray.errors import AccessError, DecodeError, TooLongError
from twostream_ray.redaction import one_line
from twostream_ray.storage.local_files import open_regular, reason

_MOST_TIMES_AS_LONG = 64
"""Maximum aspect ratio of a picture, in either direction."""
_ISO_MEDIA = "mov"
"""MP4, MOV, 3GP, M4V, F4V: what phones and cameras write."""
_CONTAINERS = (
    # Of editors, recorders of screens and the web; of webcams and older cameras; of the animations of messengers.
    *("matroska", "avi", "gif"),
    # Of camcorders, television and DVDs: AVCHD, M2TS, TOD, MOD, VOB, MPG; of professional cameras.
    *("mpegts", "mpeg", "mxf"),
    # Of Windows' own recorder and television; of streams and conferences; of free software; of phones before 2010.
    *("asf", "asf_o", "wtv", "flv", "live_flv", "ogg", "rm"),
    # Of tape cameras; of surveillance recorders; of encoders of VP8, VP9 and AV1; of FFmpeg; of tools of research.
    *("dv", "dhav", "ivf", "obu", "nut", "yuv4mpegpipe"),
    # Streams without a container, as single-board computers, web cameras and drones write them.
    *("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "mpjpeg", "h263", "vc1"),
)
"""What people film with, and what the suffixes of videos in folders stand for; each parser more is one more to attack.
None is a list of other files: those of games, animations and playlists are left out."""
_UNKNOWN_LENGTH = 2**30
"""So many frames or more in a header are none that were counted: writers to a pipe cannot go back to it."""
_WITHOUT_INDEX = {"mpegts", "mpeg", "mpegvideo"}
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
_AS_GOOD = 0.3
"""Of the largest stream, by all its pixels: what an earlier one needs to be the film and no preview of it."""
_FRAME_RATES = (Fraction(1, 1000), 1000)
_RATE = Fraction(25)
_SAME_SHAPE = 0.02


class Note(StrEnum):
    """Remarks of a report on irregular videos that are used all the same: "3 clips have ..."."""

    SEVERAL_STREAMS = "several video streams, of which one was taken"
    INTERLACED = "interlaced frames, whose moving edges show combs: deinterlace the videos to be rid of them"
    RESIZED = "frames of several sizes, which were brought to one"
    BEGINS_CUT = "frames at their start that refer to others cut away before, which were left out"
    NO_RATE = "no frame rate that can be, 25 frames a second were taken"


class FrameStream:
    """The frames of an encoded video, decoded once and in order, as upright RGB (H, W, 3) uint8.

    Frames have the file's own pixels, whose shape is `pixel_aspect`. The film is taken where a file has
    several video streams: no attached picture, and no preview, which has far fewer pixels.

    Iterating raises DecodeError as soon as the bytes cannot be decoded, and at the end when pictures are missing: what
    was decoded is held against what the container's header and the headers in its packets announce. MPEG program and
    transport streams have neither count nor index: cut between two frames they look whole.
    """

    def __init__(
        self,
        content: bytes | memoryview | Path | BinaryIO,
        *,
        name: str = "video",
        max_frames: int | None = None,
        on_packet: Callable[[], object] | None = None,
    ) -> None:
        """Open a video and look at its packets; of a file, parts are read as they are needed, and an open one stays so.

        Raises:
            DecodeError: the bytes are no video, or not all of one, or a picture is larger than 64 megapixels.
            TooLongError: it has more than max_frames.
        """
        self._name, self._max_frames, self._on_packet = name, max_frames, on_packet
        self._notes: set[Note] = set()
        size = 0
        with ExitStack() as opened:
            file: Any = content
            if isinstance(content, Path):
                file = opened.enter_context(open_video(content, name=name))
            elif isinstance(content, bytes | bytearray | memoryview):
                file = opened.enter_context(io.BytesIO(content))
            try:
                size = file.seek(0, os.SEEK_END)
                self._empty = containers.require_whole(file, name=name)
                # Only where our own look at its tables was taken at an MP4 file is one opened.
                formats = _ISO_MEDIA if containers.is_iso_media(file) else ",".join(_CONTAINERS)
                with closing(open_media(file, formats=formats)) as container:
                    self._counts, index = self._choose(container)
                self._container = opened.enter_context(open_media(file, formats=formats))
                self._stream: Any = self._container.streams[index]
            except (av.FFmpegError, ValueError, OSError) as error:
                raise DecodeError(f"{name}: not a readable video, {size} bytes ({one_line(error)})") from error
            self._opened = opened.pop_all()
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self._stream.codec_context.thread_count = 1  # others decode beside us; threads take memory and save little
        self.fps = self._rate()
        """Mean frames per second."""
        self.announced = self._counts.least
        """Frames that there must be."""
        self.pixel_aspect = Fraction(1)
        """Width of the frames' pixels for a height of 1; of the first frame, known when it is there."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known about the video; all of it when the last frame was there."""
        return tuple(sorted(self._notes))

    def close(self) -> None:
        """Let go of the file; iterating to the end does."""
        self._opened.close()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        convert = RgbConverter()
        return (convert(frame) for frame in self.pictures())

    def _choose(self, container: Any) -> tuple[PacketCounts, int]:
        """Packet counts of the main video stream, and its index among the streams."""
        streams = [stream for stream in container.streams.video if not stream.disposition & _NO_FILM]
        if not streams:
            raise DecodeError(f"{self._name}: the file has no video stream")
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise DecodeError(f"{self._name}: the file has no video in a known codec")
        by_stream = self._count(container, known)
        # A picture alone is a cover, whatever the file calls it.
        films = [stream for stream in known if by_stream[stream.index].packets > 1] or known
        shown = {
            stream.index: by_stream[stream.index].packets * stream.codec_context.width * stream.codec_context.height
            for stream in films
        }
        good = [stream for stream in films if shown[stream.index] >= _AS_GOOD * max(shown.values())]
        film = next((stream for stream in good if stream.disposition & Disposition.default), good[0])
        if len(films) > 1:
            self._notes.add(Note.SEVERAL_STREAMS)
        counts = by_stream[film.index]
        if film.codec_context.width * film.codec_context.height > MAX_PIXELS:
            raise DecodeError(f"{self._name}: frames may have at most {MAX_PIXELS} pixels, the file has larger ones")
        if counts.hole is not None:
            raise DecodeError(f"{self._name}: frame {counts.hole} or one soon after is damaged: there are zeros")
        # An edit list takes packets out of the index, empty ones stand for dropped frames.
        listed = len(film.index_entries) if container.format.name.startswith("mov") else film.frames
        counted = 0 if film.frames >= _UNKNOWN_LENGTH else film.frames
        wanted = min(counted, listed) - self._empty.get(film.index, 0)
        if counts.packets < wanted:
            raise DecodeError(f"{self._name}: the file announces {wanted} frames, {counts.packets} are there")
        refuse_more_frames(counts.least, self._max_frames, name=self._name)
        return counts, film.index

    def _count(self, container: Any, streams: Sequence[Any]) -> dict[int, PacketCounts]:
        anywhere = container.format.name in _WITHOUT_INDEX
        by_stream = {
            stream.index: PacketCounts(
                stream.codec_context.name, stream.codec_context.extradata, begins_anywhere=anywhere
            )
            for stream in streams
        }
        for packet in container.demux(*streams):
            if not packet.size:
                continue
            if self._on_packet is not None:
                self._on_packet()
            counts = by_stream[packet.stream_index]
            counts.add(bytes(packet), is_key=packet.is_keyframe, is_hidden=packet.is_discard, time=packet.pts)
            if len(streams) == 1 and self._max_frames is not None and counts.least > self._max_frames:
                # What is left need not be read.
                refuse_more_frames(max(counts.least, streams[0].frames), self._max_frames, name=self._name)
        for counts in by_stream.values():
            counts.end()
        return by_stream

    def _rate(self) -> Fraction:
        least, most = _FRAME_RATES
        for rate in (self._stream.average_rate, self._stream.guessed_rate):
            if rate and least <= (rate := Fraction(rate).limit_denominator(1001 * 240)) <= most:
                return rate
        self._notes.add(Note.NO_RATE)
        return _RATE

    def pictures(self) -> Iterator[av.VideoFrame]:
        """The same frames before their conversion to RGB, for callers that look at a few of them only."""
        counts, decoded = self._counts, 0
        watch = _ShapeWatch(self._stream)
        try:
            for packet in self._packets():
                for frame in self._stream.decode(packet):
                    decoded += 1
                    if frame.is_corrupt:
                        raise DecodeError(f"{self._name}: frame {decoded - 1} is damaged")
                    if watch.changes(frame, name=self._name):
                        self._notes.add(Note.RESIZED)
                    if frame.interlaced_frame:
                        self._notes.add(Note.INTERLACED)
                    self.pixel_aspect = watch.pixel_aspect
                    yield frame
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise DecodeError(
                f"{self._name}: decoding failed after {decoded} of {counts.least} frames ({one_line(error)})"
            ) from error
        finally:
            self.close()
        if not counts.least <= decoded <= max(counts.most, counts.packets - counts.hidden):
            raise DecodeError(f"{self._name}: the file announces {counts.least} frames, {decoded} could be decoded")
        if counts.before_key or decoded < counts.most:
            self._notes.add(Note.BEGINS_CUT)

    def _packets(self) -> Iterator[av.Packet | None]:
        """Packets to decode, and None at the end; an empty packet would end the decoder's work before that."""
        full = (packet for packet in self._container.demux(self._stream) if packet.size)
        yield from islice(full, self._counts.before_key, None)
        yield None


class _ShapeWatch:
    """How wide a picture is for its height as players show it, and whether that stays so."""

    def __init__(self, stream: Any) -> None:
        self._context = stream.codec_context
        self._aspect = Fraction(stream.sample_aspect_ratio or 1)
        self._first: tuple[int, int, Fraction] | None = None
        self._coded: Fraction | None = None
        self._shape = Fraction(1)
        self.pixel_aspect = Fraction(1)
        """Width of an upright pixel for a height of 1."""

    def changes(self, frame: av.VideoFrame, *, name: str) -> bool:
        """Whether a frame has another size than the first one.

        Raises:
            DecodeError: it has another shape, or one that is too long.
        """
        aspect, turned = self._now(frame), Orientation.of(frame).transposed
        size = (frame.width, frame.height, aspect)
        shape = aspect * frame.width / frame.height
        shape = 1 / shape if turned else shape
        if self._first is None:
            self._first, self._shape = size, shape
            self.pixel_aspect = 1 / aspect if turned else aspect
            if not 1 / _MOST_TIMES_AS_LONG <= shape <= _MOST_TIMES_AS_LONG:
                raise DecodeError(
                    f"{name}: the aspect ratio of a picture may be at most {_MOST_TIMES_AS_LONG}, this has "
                    f"{frame.width}x{frame.height} pixels of {aspect}"
                )
        elif abs(shape / self._shape - 1) > _SAME_SHAPE:
            raise DecodeError(
                f"{name}: the shape of its pictures changes from {self._first[0]}x{self._first[1]} to "
                f"{frame.width}x{frame.height} px (pixels {self._first[2]} and {aspect} as wide as high): cut the "
                "video in two there"
            )
        return size != self._first

    def _now(self, frame: av.VideoFrame) -> Fraction:
        """What the container says holds for all frames; where it says nothing the coded pictures do, one by one."""
        coded = self._context.sample_aspect_ratio
        if not coded or (self._context.width, self._context.height) != (frame.width, frame.height):
            return self._aspect
        if self._coded is not None and coded != self._coded and self._aspect == self._coded:
            self._aspect = coded
        self._coded = coded
        return self._aspect


class ImageSequence:
    """Frames that exist as images, in order, as RGB (H, W, 3) uint8; like a FrameStream at 25 frames a second."""

    def __init__(self, images: Sequence[bytes], *, name: str) -> None:
        self._images, self._name = images, name
        self.fps = Fraction(25)
        """Images do not say how fast they follow one another."""
        self.announced = len(images)
        """Images that there are."""
        self.pixel_aspect = Fraction(1)
        self.notes: tuple[str, ...] = ()

    def close(self) -> None:
        """Nothing is open."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        shape = None
        for number, content in enumerate(self._images, start=1):
            frame = read_image(content, name=f"{self._name}, frame {number}")
            shape = shape or frame.shape
            if frame.shape != shape:
                raise DecodeError(
                    f"{self._name}: expected frames of one size, frame {number} is "
                    f"{frame.shape[1]}x{frame.shape[0]} px, the first {shape[1]}x{shape[0]} px"
                )
            yield frame


def open_video(path: Path, *, name: str) -> BinaryIO:
    """Open a video's file.

    Raises:
        DecodeError: it is no regular file, or cannot be opened.
    """
    try:
        return open_regular(path)
    except AccessError as error:
        raise DecodeError(f"{name}: {error}") from error
    except OSError as error:
        raise DecodeError(f"{name}: its file cannot be opened: {reason(error)}") from error


def refuse_more_frames(num_frames: int, limit: int | None, *, name: str) -> None:
    """Raise if a clip has more frames than the limit.

    Raises:
        TooLongError: it is longer.
    """
    if limit is not None and num_frames > limit:
        raise TooLongError(
            f"{name}: a clip may have at most {limit} frames, this has {num_frames} or more: cut it into clips, "
            "or raise max_frames"
        )


def refuse_longer(seconds: Fraction | float, limit: float | None, *, name: str) -> None:
    """Raise if a clip plays longer than the limit.

    Raises:
        TooLongError: it plays longer.
    """
    if limit is not None and seconds > limit:
        raise TooLongError(
            f"{name}: a clip may take at most {limit:g} s, this takes {float(seconds):.1f} s or more: cut it into "
            "clips, or raise max_seconds"
        )
