"""Seccomp filter: blocks system calls that decoding never makes (Linux 3.17, on x86-64 and AArch64).

The filter lists what is refused, not what is allowed: which harmless calls a C library makes differs with its version.
Calls that are newer than the list are refused as if the kernel did not know them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

_REFUSED = {
    # name: number on x86-64, on AArch64; the second has no calls that later ones replaced
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setrlimit": (160, 164),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "mq_open": (240, 180),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "iopl": (172, None), "ioperm": (173, None), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "creat": (85, None), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "mknod": (133, None),
    "mknodat": (259, 33), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
"""Sockets, programs, other processes, kernel interfaces beside the usual ones, and changes to files."""
_UNKNOWN = {"clone3": 435, "openat2": 437}
"""Their arguments are behind a pointer, which no filter sees; the C library then takes the calls that they replace."""
_NEWEST = 462
"""Last call that was looked at for the list."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD = 0x10000
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX inject input into a terminal, which standard error may be."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of classic BPF; each is 8 bytes: code, jump if true, jump if false, operand."""
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_SET_FILTER, _ALL_THREADS, _ALLOW_SPECULATION = 1, 1, 4
"""Kernels before 5.16 would switch speculation off with a filter; the process holds one video and guards no secret."""


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    column: int
    """Of `_REFUSED`."""
    seccomp: int
    open: int | None
    openat: int
    clone: int
    kill: int
    tgkill: int
    prlimit: int
    ioctl: int


ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 0, 317, 2, 257, 56, 62, 234, 302, 16),
    "aarch64": _Architecture(0xC00000B7, 1, 277, None, 56, 220, 129, 131, 261, 29),
}
"""Those whose numbers are in `_REFUSED`, as platform.machine() calls them."""


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict() -> list[str]:
    """Give up, in all threads, the calls listed, and the like of them; returns what this machine cannot do of it.

    Raises nothing. It wants no privilege but `no_new_privs`.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None or sys.maxsize < 2**32:
        return [f"sockets, programs and signals are not refused (no list of system calls of {platform.machine()})"]
    code = _program(architecture, process=os.getpid())
    program = _FilterProgram(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    call = ctypes.c_long(architecture.seccomp)
    failed = libc.syscall(call, _SET_FILTER, _ALL_THREADS | _ALLOW_SPECULATION, ctypes.byref(program))
    if failed < 0:  # Linux before 4.17 does not know the second flag
        failed = libc.syscall(call, _SET_FILTER, _ALL_THREADS, ctypes.byref(program))
    if failed:
        why = os.strerror(ctypes.get_errno()) if failed < 0 else "a thread has a filter of its own"
        return [f"sockets, programs and signals are not refused (seccomp: {why})"]
    return []


def _program(architecture: _Architecture, *, process: int) -> bytes:
    refuse, allow = _FAIL | errno.EPERM, _ALLOW
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture.audit), (_RETURN, 0, 0, refuse)]
    code += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _NEWEST + 1), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    for unknown in _UNKNOWN.values():
        code += [(_EQUAL, 0, 1, unknown), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    for numbers in _REFUSED.values():
        if (number := numbers[architecture.column]) is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    for opening, argument in ((architecture.open, 1), (architecture.openat, 2)):
        if opening is not None:
            code += _by_argument(opening, argument, [(_ANY_BIT, 0, 1, _WRITING), (_RETURN, 0, 0, refuse)])
    code += _by_argument(architecture.clone, 0, [(_ANY_BIT, 1, 0, _THREAD), (_RETURN, 0, 0, refuse)])
    for number in (architecture.kill, architecture.tgkill):
        code += _by_argument(number, 0, [(_EQUAL, 1, 0, process), (_RETURN, 0, 0, refuse)])
    # Its third argument is an address, of which either half may be zero.
    limit = [(_EQUAL, 0, 2, 0), (_LOAD, 0, 0, _ARGUMENTS + 20), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, refuse)]
    code += _by_argument(architecture.prlimit, 2, limit)
    for request in _TERMINAL_INPUT:
        code += _by_argument(architecture.ioctl, 1, [(_EQUAL, 0, 1, request), (_RETURN, 0, 0, refuse)])
    code.append((_RETURN, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _by_argument(number: int, argument: int, test: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """For one call: load an argument's low half and test it; the number is loaded again for what follows."""
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
    return [(_EQUAL, 0, 2 + len(test), number), load, *test, (_LOAD, 0, 0, _NUMBER)]
