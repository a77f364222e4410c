"""Bitstream parsers: number of pictures in a coded packet, and whether runs of zeros are padding or missing data.

H.264 (ITU-T H.264, 7.3), HEVC (H.265, 7.3), MPEG-1 and 2 (H.262, 6.2), MPEG-4 Visual (ISO 14496-2, 6.2), VP8 (RFC 6386,
9.1), VP9, GIF89a. A packet of any other codec counts as one picture.
"""

from __future__ import annotations

import re

from twostream_ray.data.video.containers import palette_bytes
from twostream_ray.data.video.nal_units import HOLE, Bits, H264Reader, HevcReader, Reader

_LARGEST_UNCODED_BYTES = 8
_OBJECT_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]", re.DOTALL)


class PacketCounts:
    """Counts of the packets and pictures of one stream, packet by packet in the order of the file."""

    def __init__(self, codec: str, extradata: bytes | None, *, begins_anywhere: bool) -> None:
        """Start counting for a codec, by FFmpeg's name, with the container's extradata for its decoder.

        `begins_anywhere` is a container that may be cut in front of any packet: what comes before the first key picture
        is left out.
        """
        self._reader = _READERS.get(codec, Reader)(extradata or b"")
        self._begins_anywhere = begins_anywhere
        self._key_time: int | None = None
        self.packets = 0
        """Packets with content."""
        self.hidden = 0
        """Packets that an edit list hides: the header counts them, players do not show them."""
        self.before_key = 0
        """Packets in front of the first key picture that are left out."""
        self.keys = 0
        """Packets that can be decoded without others."""
        self.least = 0
        """Minimum number of decoded pictures."""
        self.most = 0
        """Maximum number: leading pictures that refer to frames cut away may or may not be decoded."""
        self.hole: int | None = None
        """Picture in whose packet zeros stand where the codec has none: padding of NAL units or palettes is no hole."""

    def add(self, content: bytes, *, is_key: bool, is_hidden: bool, time: int | None) -> None:
        """The next packet; `time` is when its picture is shown, in any unit."""
        self.packets += 1
        self.keys += is_key
        count = self._reader.count(content)
        if is_key and self.keys == 1:
            self._key_time = time
            if self._begins_anywhere:
                self.before_key, self.least, self.most = self.packets - 1, 0, 0
        if self.hole is None and HOLE in content and self._reader.has_hole(content):
            self.hole = self.most
        if is_hidden:
            self.hidden += 1
            return
        leads = self.keys == 1 and time is not None and self._key_time is not None and time < self._key_time
        self.most += count
        self.least += 0 if leads and not self._reader.is_closed else count

    def end(self) -> None:
        """There are no more packets: a cut between the two fields of a picture leaves one that need not be shown."""
        if self._reader.lacks_field and self.most:
            self.most -= 1
            self.least = min(self.least, self.most)


class _NeverZeroReader(Reader):
    def has_hole(self, packet: bytes) -> bool:  # noqa: ARG002
        return True


class _Mpeg2Reader(Reader):
    """MPEG-1 has no extension of a picture, and no fields."""

    is_closed = False

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._open_field = 0

    def count(self, packet: bytes) -> int:
        if b"\0\0\1\0" not in packet:
            return 0
        structures = [
            packet[at + 6] & 3
            for at in (match.start() for match in re.finditer(rb"\x00\x00\x01\xb5[\x80-\x8f]", packet, re.DOTALL))
            if at + 6 < len(packet)
        ]
        pictures = 0
        for structure in structures or [3]:
            if structure in (1, 2) and self._open_field == 3 - structure:
                self._open_field, self.lacks_field = 0, False
                continue
            self._open_field = structure if structure in (1, 2) else 0
            self.lacks_field = self._open_field > 0
            pictures = 1
        return pictures


class _Mpeg4Reader(_NeverZeroReader):
    """A video object plane that is announced as not coded repeats the last one; packed ones share a packet."""

    is_closed = False

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._time_bits: int | None = None
        self._waiting = 0
        self._learn(extradata)

    def _learn(self, content: bytes) -> None:
        layer = _OBJECT_LAYER.search(content)
        if layer is None:
            return
        bits = Bits(content[layer.end() : layer.end() + 40], escaped=False)
        try:
            bits.take(9)
            version = bits.take(7) >> 3 if bits.take(1) else 1
            if bits.take(4) == 15:  # extended pixel aspect
                bits.take(16)
            if bits.take(1):
                bits.take(3)
                if bits.take(1):  # buffering
                    bits.take(79)
            if bits.take(2) == 3 and version != 1:
                bits.take(4)
            bits.take(1)
            self._time_bits = max(1, (bits.take(16) - 1).bit_length())
        except IndexError:
            return

    def count(self, packet: bytes) -> int:
        start, *planes = packet.split(b"\0\0\1\xb6")
        self._learn(start)
        if not planes and len(packet) > _LARGEST_UNCODED_BYTES:
            return 1
        # A decoder returns one picture per packet: a second one comes with the next packet, after the last one never.
        pending = self._waiting + sum(self._is_coded(plane) for plane in planes)
        self._waiting = int(pending > 1)
        return int(pending > 0)

    def _is_coded(self, plane: bytes) -> bool:
        if self._time_bits is None:
            return len(plane) > _LARGEST_UNCODED_BYTES
        bits = Bits(plane[:64], escaped=False)
        try:
            bits.take(2)
            while bits.take(1):
                pass
            bits.take(1 + self._time_bits + 1)
            return bool(bits.take(1))
        except IndexError:
            return True


class _Vp8Reader(_NeverZeroReader):
    def count(self, packet: bytes) -> int:
        return packet[0] >> 4 & 1


class _Vp9Reader(_NeverZeroReader):
    def count(self, packet: bytes) -> int:
        return min(1, sum(map(self._is_shown, _vp9_frames(packet))))

    def _is_shown(self, frame: bytes) -> bool:
        bits = Bits(frame[:4], escaped=False)
        try:
            bits.take(2)
            if bits.take(1) + 2 * bits.take(1) == 3:
                bits.take(1)
            if bits.take(1):  # shows one that was decoded before
                return True
            bits.take(1)
            return bool(bits.take(1))
        except IndexError:
            return True


class _GifReader(Reader):
    """Palettes and comments may hold zeros, the coded picture cannot; comments behind the last picture are none."""

    def count(self, packet: bytes) -> int:
        at = self._behind_extensions(packet)
        return int(at != len(packet) and packet[at : at + 1] != b";")

    def has_hole(self, packet: bytes) -> bool:
        at = self._behind_extensions(packet)
        if packet[at : at + 1] != b"," or at + 10 > len(packet):
            return packet[at : at + 1] != b";"
        at += 10 + palette_bytes(packet[at + 9 : at + 10])
        end = _end_of_blocks(packet, at + 1)
        # Comments may follow, and behind the last picture what is behind the end of the file.
        return HOLE in packet[at : end if packet[end : end + 1] in (b"!", b",", b";") else len(packet)]

    def _behind_extensions(self, packet: bytes) -> int:
        at = 0
        if packet[:3] == b"GIF" and len(packet) >= 13:
            at = 13 + palette_bytes(packet[10:11])
        while packet[at : at + 1] == b"!":
            at = _end_of_blocks(packet, at + 2)
        return at


_READERS: dict[str, type[Reader]] = {
    "h264": H264Reader,
    "hevc": HevcReader,
    "mpeg1video": _Mpeg2Reader,
    "mpeg2video": _Mpeg2Reader,
    "mpeg4": _Mpeg4Reader,
    "vp8": _Vp8Reader,
    "libvpx": _Vp8Reader,
    "vp9": _Vp9Reader,
    "libvpx-vp9": _Vp9Reader,
    "av1": _NeverZeroReader,
    "libdav1d": _NeverZeroReader,
    "libaom-av1": _NeverZeroReader,
    "gif": _GifReader,
}


def _end_of_blocks(content: bytes, at: int) -> int:
    """Where what follows the sub-blocks of a GIF begins."""
    while at < len(content) and content[at]:
        at += 1 + content[at]
    return at + 1


def _vp9_frames(packet: bytes) -> list[bytes]:
    """The frames of a superframe (VP9, annex B), or the packet."""
    marker = packet[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = 2 + count * width
    if marker & 0xE0 != 0xC0 or len(packet) < index or packet[-index] != marker:
        return [packet]
    frames, at = [], 0
    for number in range(count):
        offset = len(packet) - index + 1 + number * width
        size = int.from_bytes(packet[offset : offset + width], "little")
        frames.append(packet[at : at + size])
        at += size
    return [frame for frame in frames if frame]
