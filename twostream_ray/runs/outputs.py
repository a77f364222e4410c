"""Overwrite protection: a verb overwrites only files that it has written itself."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twostream_ray import storage
from twostream_ray.errors import ConfigError, TwoStreamError
from twostream_ray.storage.json_files import parse_json

_MARK = b"Software\0twostream_ray"
_LIMIT_BYTES = 1 << 30
_MARKED_BYTES = 1 << 16
_HEADER_BYTES = 33
"""Signature and IHDR chunk of a PNG, after which other chunks may follow."""


def refuse_foreign_files(
    out: str, names: Sequence[str], *, verb: str, schema: Any = None, begins: bytes | None = None
) -> None:
    """Refuse to overwrite `names` unless the verb has written them.

    The first of them, which is written first, identifies them: it is JSON of `schema`, or a text that starts with
    `begins`.

    Raises:
        ConfigError: names the file and the way out.
    """
    existing = [name for name in names if storage.exists(storage.join(out, name))]
    if not existing:
        return
    try:
        content = storage.read_bytes(storage.join(out, names[0]), limit_bytes=_LIMIT_BYTES)
        if begins is None:
            parse_json(content, schema, where=out, what="", way_out="", error=ConfigError, metrics=True)
        is_own = begins is None or content.startswith(begins)
    except TwoStreamError:
        is_own = False
    if not is_own:
        _refuse(storage.join(out, existing[0]), verb=verb)


def refuse_foreign_picture(uri: Path, *, verb: str) -> None:
    """Refuse to overwrite a picture without the mark of `marked`.

    Raises:
        ConfigError: names the file and the way out.
    """
    if not uri.is_symlink() and not uri.exists():
        return
    try:
        is_own = _MARK in storage.read_bytes(str(uri), limit_bytes=_LIMIT_BYTES)[:1000]
    except TwoStreamError:
        is_own = False
    if not is_own:
        _refuse(str(uri), verb=verb)


def refuse_unmarked_file(uri: str, *, mark: str, verb: str, option: str = "video") -> None:
    """Refuse to overwrite a file without this mark near its end, where this package's videos and models have it.

    Raises:
        ConfigError: names the file and the way out.
    """
    location = storage.absolute(uri)
    if not storage.exists(location):
        return
    try:
        with storage.open_regular(location) as file:
            file.seek(max(0, file.size() - _MARKED_BYTES))
            is_own = mark.encode() in file.read(_MARKED_BYTES)
    except (TwoStreamError, OSError):
        is_own = False
    if not is_own:
        _refuse(uri, verb=verb, option=option)


def marked(picture: bytes) -> bytes:
    """The PNG with a text chunk that identifies this package."""
    chunk = b"tEXt" + _MARK
    text_chunk = struct.pack(">I", len(_MARK)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return picture[:_HEADER_BYTES] + text_chunk + picture[_HEADER_BYTES:]


def _refuse(uri: str, *, verb: str, option: str = "out") -> None:
    raise ConfigError(
        f"{verb} wants to write {uri}, where there is a file that it did not write (or an earlier version did): move "
        f"it away, or choose another --{option}"
    )
