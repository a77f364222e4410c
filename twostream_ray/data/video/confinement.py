"""Sandbox of a decoding process (Landlock, seccomp, rlimits): no credentials, other files, network or programs.

A video that exploits a flaw in a decoder controls a process that has access to that video and a pipe only.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import site
import sys
import sysconfig
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from twostream_ray.data.video import landlock, seccomp

MOST_FILES = 64
"""Descriptors of a decoding process."""
_NEEDED = ("PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR")
"""Where the interpreter, libraries and temporary files are; forgotten when the libraries are loaded."""
_LATE = ("cv2", "concurrent.futures", "encodings.idna", "multiprocessing.reduction", "socket")
"""What is otherwise imported with the first video, when no thread may be there any more that is not confined."""
_NO_NEW_PRIVILEGES, _CAPABILITIES_VERSION = 38, 0x20080522


def child_environment() -> dict[str, str]:
    """The variables that a decoding process starts with: where its code is, and no credentials under any name."""
    needed = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    if site.ENABLE_USER_SITE:
        needed["PYTHONUSERBASE"] = site.getuserbase()
    package = Path(__file__).resolve().parents[3]
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    needed["PYTHONPATH"] = os.pathsep.join([str(package), *map(os.path.abspath, others)])
    # Each thread's own heap would count as address space, and threads that exist already cannot be confined.
    return needed | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def confine() -> list[str]:
    """Take from this process, for good, what decoding does not need; called once, before anything from outside is read.

    Libraries are loaded first. Then the environment is empty, the working directory is one of its own that is empty and
    can hold nothing, files are opened for reading only and only where Python's libraries are, and there are neither
    sockets, programs, other processes, core dumps nor more than `MOST_FILES` descriptors. What is open stays open.

    Returns what the kernel does not let it give up, in words.
    """
    for module in _LATE:
        with suppress(ImportError):
            import_module(module)
    readable = _libraries()
    _leave_directory()
    os.environ.clear()
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, MOST_FILES)):
        resource.setrlimit(limit, (value, value))
    # Its owner may lend it a file to write, once the child itself cannot raise limits any more.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    libc = ctypes.CDLL(None, use_errno=True)
    left = []
    if (threads := len([*Path("/proc/self/task").iterdir()])) > 1:
        left.append(f"{threads - 1} threads of libraries can read other files")
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return [*left, f"nothing is refused by the kernel (no_new_privs: {os.strerror(ctypes.get_errno())})"]
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        left.append(f"it keeps the user's capabilities ({os.strerror(ctypes.get_errno())})")
    return left + landlock.restrict(readable) + seccomp.restrict()


def limit_memory(process: int, size_bytes: int) -> None:
    """Bound the address space that a process may take beyond what it has; its owner does, it could not be trusted.

    Raises:
        OSError: the process is gone, or the system does not allow it.
    """
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    _limit(process, resource.RLIMIT_AS, pages * resource.getpagesize() + size_bytes)


def limit_time(process: int, seconds: float) -> None:
    """Bound the time of the processors that a process may take from now on, by all its threads.

    Raises:
        OSError: the process is gone, or the system does not allow it.
    """
    fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    taken = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    _limit(process, resource.RLIMIT_CPU, math.ceil(taken + seconds))


def limit_writing(process: int, *, allowed: bool) -> None:
    """Say whether files that a process is lent for writing may grow, as far as they may for this process.

    Raises:
        OSError: the process is gone, or the system does not allow it.
    """
    own, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    _, most = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (own if allowed else 0, most))


def _limit(process: int, kind: int, wanted: int) -> None:
    _, most = resource.prlimit(process, kind)
    resource.prlimit(process, kind, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _libraries() -> list[Path]:
    """Directories of Python's own modules, of installed ones and of this package."""
    found = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if site.ENABLE_USER_SITE:
        found.add(site.getusersitepackages())
    # Debian and others have a second one of each kind; what else PYTHONPATH names may be a user's whole home.
    found |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages", "lib-dynload")}
    return [*map(Path, sorted(found)), Path(__file__).resolve().parents[2]]


def _leave_directory() -> None:
    """Go to a directory that is deleted: it is empty, and nothing can be made in it."""
    try:
        own = tempfile.mkdtemp(prefix="twostream-decoder-")
        os.chdir(own)
        os.rmdir(own)  # noqa: PTH106
    except OSError:
        os.chdir("/")
