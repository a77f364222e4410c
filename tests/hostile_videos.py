"""What an upload may be in place of a video: lists of other places, and files that announce more than they have."""

import struct
from collections.abc import Callable

import simplejpeg
from foreign_videos import encoded, pictures

LISTS: dict[str, Callable[[str], str]] = {
    "m3u8": lambda place: f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{place}\n#EXT-X-ENDLIST\n",
    "ffconcat": lambda place: f"ffconcat version 1.0\nfile '{place}'\n",
    "concat": lambda place: f"concat:{place}|{place}\n",
    "subfile": lambda place: f"subfile,,start,0,end,100,,:{place}\n",
    "session": lambda place: (
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nu={place}\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    ),
    "dash": lambda place: (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f'<Representation id="1" bandwidth="1"><BaseURL>{place}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>"
    ),
    "smooth streaming": lambda place: f'<SmoothStreamingMedia><StreamIndex Url="{place}"/></SmoothStreamingMedia>',
    "asx": lambda place: f'<asx version="3.0"><entry><ref href="{place}"/></entry></asx>',
    "reference": lambda place: f"[Reference]\nRef1={place}\n",
    "svg": lambda place: f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{place}" width="9" height="9"/></svg>',
    "pattern": lambda place: place.replace("video", "%05d"),
}
"""Format -> a file of it that names a place."""


def large_jpeg() -> bytes:
    """A picture whose header announces 16384 x 16384 pixels."""
    content = bytearray(simplejpeg.encode_jpeg(next(pictures(1))))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", 16384, 16384)
    return bytes(content)


def large_gif() -> bytes:
    """Three of them."""
    picture = b"," + struct.pack("<HHHH", 0, 0, 16384, 16384) + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HH", 16384, 16384) + b"\x80\0\0" + bytes(6) + picture * 3 + b";"


def large_raw() -> bytes:
    """A frame that is not compressed and mostly missing."""
    return b"YUV4MPEG2 W16384 H16384 F25:1 Ip C420jpeg\nFRAME\n" + bytes(1000)


def million_frames() -> bytes:
    """An AVI of ten frames that announces 1,000,000."""
    content = bytearray(encoded("mpeg4", pictures(10), container="avi"))
    for kind, at in ((b"avih", 24), (b"strh", 40)):
        start = content.index(kind) + at
        content[start : start + 4] = struct.pack("<I", 1_000_000)
    return bytes(content)


def endless() -> bytes:
    """Video of the same five seconds again and again."""
    return encoded("mpeg2video", pictures(25), container="mpegts") * 200
