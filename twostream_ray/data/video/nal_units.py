"""NAL unit parser for H.264 (ITU-T H.264, 7.3) and HEVC (H.265, 7.3): picture starts, and padding."""

from __future__ import annotations

HOLE = bytes(64)
"""No codec that is looked into writes such a run within a picture, but decoders take it for one; a hole in a file reads
so."""
_START = b"\0\0\1"
_SLICES_264, _SPS_264, _PPS_264, _IDR_264 = frozenset({1, 2, 5}), 7, 8, 5
_SLICES_265, _IDR_265 = frozenset(range(32)), {19, 20}
_PROFILES_WITH_CHROMA = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


class Bits:
    """Bit reader, most significant bit first; raises IndexError past the end."""

    def __init__(self, content: bytes, *, escaped: bool = True) -> None:
        """`escaped` is content of a NAL unit, in which a 3 keeps zeros from reading as a start code."""
        plain = content.replace(b"\0\0\3", b"\0\0") if escaped else content
        self._value, self._left = int.from_bytes(plain, "big"), 8 * len(plain)

    def take(self, count: int) -> int:
        """The next bits as a number."""
        if count > self._left:
            raise IndexError
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """An Exp-Golomb number."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise IndexError
        return (1 << zeros) - 1 + self.take(zeros)


class Reader:
    """Counts pictures in packets; this base class serves codecs without a parser."""

    is_closed = True
    """Whether the stream's first picture says that none before it is referred to."""

    lacks_field = False
    """Whether the last picture so far has one of its two fields only."""

    def __init__(self, extradata: bytes) -> None:
        self._extradata = extradata

    def count(self, packet: bytes) -> int:  # noqa: ARG002
        """Pictures that a packet ought to give."""
        return 1

    def has_hole(self, packet: bytes) -> bool:  # noqa: ARG002
        """Whether a run of zeros in a packet, which there is, is none that the codec writes."""
        return False


class _NalReader(Reader):
    """H.264 and HEVC: NAL units behind start codes, or behind their lengths where the container has a record."""

    _slices: frozenset[int]
    _first_slice_seen = False

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._length_bytes = 0
        if extradata[:1] == b"\1" and len(extradata) > self._length_at:
            self._length_bytes = 1 + (extradata[self._length_at] & 3)

    _length_at: int
    """Where the record has the size of lengths."""

    def _kind(self, unit: bytes) -> int:
        raise NotImplementedError

    def count(self, packet: bytes) -> int:
        units = _nal_units(packet, self._length_bytes)
        if units is None:
            return 1
        pictures = 0
        for unit in units:
            kind = self._kind(unit)
            if kind in self._slices and not pictures:
                if not self._first_slice_seen:
                    self._first_slice_seen = True
                    self.is_closed = self._is_closed(kind)
                if not self._continues(unit):
                    pictures = 1
            elif kind not in self._slices:
                self._learn(unit, kind)
        return pictures

    def has_hole(self, packet: bytes) -> bool:
        units = _nal_units(packet, self._length_bytes)
        # Within a unit no three zeros stand in a row: they would read as a start code.
        return not units or any(HOLE in unit.rstrip(b"\0") or not unit.strip(b"\0") for unit in units)

    def _is_closed(self, kind: int) -> bool:
        raise NotImplementedError

    def _continues(self, unit: bytes) -> bool:
        """Whether a slice belongs to a picture whose first field came in a packet before."""
        raise NotImplementedError

    def _learn(self, unit: bytes, kind: int) -> None:
        raise NotImplementedError


class H264Reader(_NalReader):
    """Two fields of a frame may come in two packets: they are one picture."""

    _slices, _length_at = _SLICES_264, 4

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._sequences: dict[int, tuple[int, bool, bool]] = {}
        """SPS -> bits of frame_num, whether fields may be coded alone, whether colour planes are."""
        self._sequence_of: dict[int, int] = {}
        """PPS -> SPS."""
        self._open_field: tuple[int, int] | None = None
        for unit in _units_of_record(extradata) if self._length_bytes else _nal_units(extradata, 0) or []:
            self._learn(unit, self._kind(unit))

    def _kind(self, unit: bytes) -> int:
        return unit[0] & 31 if unit else 0

    def _is_closed(self, kind: int) -> bool:
        return kind == _IDR_264

    def _learn(self, unit: bytes, kind: int) -> None:
        if kind not in (_SPS_264, _PPS_264):
            return
        bits = Bits(unit[1:])
        try:
            if kind == _SPS_264:
                identity, sequence = _sequence(bits)
                self._sequences[identity] = sequence
            else:
                identity = bits.golomb()
                self._sequence_of[identity] = bits.golomb()
        except IndexError:  # cut short: the decoder says more about it
            return

    def _continues(self, unit: bytes) -> bool:
        first, self._open_field, self.lacks_field = self._open_field, None, False
        bits = Bits(unit[1:40])
        try:
            bits.golomb()  # first_mb_in_slice
            bits.golomb()  # slice_type
            sequence = self._sequences.get(self._sequence_of.get(bits.golomb(), -1))
            if sequence is None:
                return False
            frame_bits, fields, planes = sequence
            bits.take(2 * planes)
            frame = bits.take(frame_bits)
            if not (fields and bits.take(1)):
                return False
            bottom = bits.take(1)
        except IndexError:
            return False
        if first == (frame, 1 - bottom):
            return True
        self._open_field, self.lacks_field = (frame, bottom), True
        return False


class HevcReader(_NalReader):
    """Fields are pictures of their own here."""

    _slices, _length_at = _SLICES_265, 21

    def _kind(self, unit: bytes) -> int:
        return unit[0] >> 1 & 63 if unit else 63

    def _is_closed(self, kind: int) -> bool:
        return kind in _IDR_265

    def _continues(self, unit: bytes) -> bool:  # noqa: ARG002
        return False

    def _learn(self, unit: bytes, kind: int) -> None:
        pass


def _nal_units(packet: bytes, length_bytes: int) -> list[bytes] | None:
    """NAL units with what pads them, or None where lengths do not fit or zeros stand in front."""
    if not length_bytes:
        front, *units = packet.split(_START)
        return None if front.strip(b"\0") or len(front) >= len(HOLE) else units
    units, at = [], 0
    while at < len(packet):
        size = int.from_bytes(packet[at : at + length_bytes], "big")
        at += length_bytes
        if not size and units and not packet[at:].strip(b"\0"):
            break
        if not size or at + size > len(packet):
            return None
        units.append(packet[at : at + size])
        at += size
    return units


def _units_of_record(record: bytes) -> list[bytes]:
    """The parameter sets of an avcC record (ISO 14496-15)."""
    units: list[bytes] = []
    at = 5
    for mask in (31, 255):
        if at >= len(record):
            break
        count = record[at] & mask
        at += 1
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2], "big")
            units.append(record[at + 2 : at + 2 + size])
            at += 2 + size
    return units


def _sequence(bits: Bits) -> tuple[int, tuple[int, bool, bool]]:
    """Identity of an SPS; bits of frame_num, whether fields may be coded alone, whether colour planes are."""
    profile = bits.take(8)
    bits.take(16)
    identity, planes = bits.golomb(), False
    if profile in _PROFILES_WITH_CHROMA:
        chroma = bits.golomb()
        planes = chroma == 3 and bool(bits.take(1))
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    frame_bits = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    return identity, (min(frame_bits, 16), not bits.take(1), planes)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            following = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
        last = following or last
