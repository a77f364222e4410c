"""Landlock sandbox: restricts a thread to reading below given directories, without TCP ports (Linux 5.13)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of its system calls, the same on all architectures."""
_ASK_VERSION = 1
_BELOW_PATH = 1
_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Version -> what it knows of files: linking across directories, truncating and controlling devices came later."""
_PORTS, _PORTS_SINCE = 0b11, 4
"""Binding and connecting TCP sockets."""
_OTHERS, _OTHERS_SINCE = 0b11, 6
"""Abstract Unix sockets of other processes, and signals to them."""


def version() -> int:
    """Of the kernel's interface; 0 where there is none, or it is switched off."""
    return max(
        0, _libc().syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION))
    )


def restrict(readable: Iterable[Path]) -> list[str]:
    """Give up, in this thread and those that it starts, whatever is not reading below `readable`.

    What is open stays open. It wants no privilege but `no_new_privs`. Returns what this kernel cannot do of it.
    """
    known = version()
    if not known:
        return ["other files can be read (no Landlock)"]
    files = _FILES[max(since for since in _FILES if since <= known)]
    ports, others = (_PORTS if known >= _PORTS_SINCE else 0), (_OTHERS if known >= _OTHERS_SINCE else 0)
    # An older kernel takes the fields that it knows only.
    fields = 3 if others else 2 if ports else 1
    attributes = struct.pack(f"={fields}Q", *(files, ports, others)[:fields])
    libc = _libc()
    ruleset = libc.syscall(ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return [f"other files can be read (Landlock: {os.strerror(ctypes.get_errno())})"]
    try:
        for path in readable:
            with suppress(FileNotFoundError):
                _allow(libc, ruleset, path)
        if libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), 0):
            return [f"other files can be read (Landlock: {os.strerror(ctypes.get_errno())})"]
    finally:
        os.close(ruleset)
    return []


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = _READ_FILE | _READ_DIRECTORY if path.is_dir() else _READ_FILE
        rule = struct.pack("=Qi", allowed, opened)
        if libc.syscall(ctypes.c_long(_ADD_RULE), ctypes.c_int(ruleset), _BELOW_PATH, rule, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(opened)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
