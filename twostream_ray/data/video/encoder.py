"""Reproducible H.264 encoding: x264 parameters for identical bytes on every x86 processor, and library versions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache

import av

X264_PARAMS = "cpu-independent=1"
"""Left to itself x264 chooses other algorithms on other processors, and its AVX-512 code for the macroblock tree reads
uninitialised memory: the same frames then give other bytes on another machine, or in another order. It costs
nothing that can be measured (0.18, 0.42 and 1.4 ms a frame of 86x64, 170x128 and 342x256 px, before and after)."""


@cache
def versions() -> Mapping[str, str]:
    """What the bytes of stored video and flow stand on, beside the videos and the settings: library -> version."""
    import cv2

    return {
        "x264": f"{_x264_version()}, {X264_PARAMS}",
        "ffmpeg": av.ffmpeg_version_info,
        "pyav": av.__version__,
        "opencv": cv2.__version__,
    }


def _x264_version() -> str:
    """As "core 165"; x264 says it in the first picture that it encodes, and nowhere else."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.framerate = 16, 16, "yuv420p", Fraction(25)
    packets = [*codec.encode(av.VideoFrame(16, 16, "yuv420p")), *codec.encode(None)]
    found = re.search(rb"x264 - (core \d+[ \w]*)", b"".join(map(bytes, packets)))
    return found[1].decode().strip() if found else "unknown"


def version_notes(recorded: Sequence[Mapping[str, str] | None]) -> list[str]:
    """Which shards were encoded by other versions than would encode now, by what their records say, in sentences.

    None is a record of before versions were written down.
    """
    now = versions()
    counts = Counter(None if found is None else tuple(sorted(found.items())) for found in recorded if found != now)
    return [
        f"{count} of {len(recorded)} shards {_difference(dict(found or ()), now)} and stay as they are, though "
        "the same videos would give other bytes now: ingest into another --out to have all from one encoder"
        for found, count in counts.items()
    ]


def _difference(found: Mapping[str, str], now: Mapping[str, str]) -> str:
    if not found:
        return "were encoded by versions that their records do not name"
    differing = [name for name in now if now[name] != found.get(name)]
    theirs = ", ".join(f"{name} {found.get(name, 'unknown')}" for name in differing)
    return f"were encoded by {theirs} (now {', '.join(now[name] for name in differing)})"
