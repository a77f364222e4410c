"""The decoding process as a flaw in a decoder would find it: what code inside it can reach."""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twostream_ray.data.video import landlock, seccomp
from twostream_ray.data.video.confined_process import ConfinedProcess
from twostream_ray.data.video.confinement import MOST_FILES

ATTEMPT = """
import ctypes, json, os, resource, signal, socket, subprocess, sys, threading
from pathlib import Path
import twostream_ray.data.video.isolation
from twostream_ray.data.video.confined_process import accept_confinement, receive_file
files = accept_confinement(os.fdopen(os.dup(1), "wb"))
def open_files():
    opened = []
    try:
        while True:
            opened.append(os.dup(0))
    except OSError:
        return len([os.close(one) for one in opened])
for code in sys.stdin:
    try:
        answer = repr(eval(json.loads(code)))
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    content = json.dumps(answer).encode()
    os.write(1, len(content).to_bytes(4, "little") + content)
"""

needs_landlock = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock, or it is switched off")
needs_seccomp = pytest.mark.skipif(
    platform.machine() not in seccomp.ARCHITECTURES, reason="there is no list of system calls of this architecture"
)


@pytest.fixture(scope="module")
def process() -> Iterator[ConfinedProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED_SECRET", "planted-secret")
        process = ConfinedProcess(ATTEMPT)
    process.wait_until_ready()
    process.allow_memory(1 << 29)
    yield process
    process.end()


def attempt(process: ConfinedProcess, code: str) -> str:
    """What code comes to inside, as text, or the error that it meets."""
    process.stdin.write(json.dumps(code).encode() + b"\n")
    process.stdin.flush()
    answer: str = json.loads(process.read(int.from_bytes(process.read(4), "little")))
    return answer


@needs_landlock
@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open(f'/proc/{os.getppid()}/environ').read()",
        "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
        "os.listdir('/')",
        "os.listdir('/home')",
        "os.listdir('/tmp')",
        "open('/dev/zero', 'rb')",
        f"open({str(Path(__file__))!r}).read()",
    ],
)
def test_no_file_but_python_and_its_libraries_can_be_read(process: ConfinedProcess, code: str) -> None:
    assert attempt(process, code).startswith("PermissionError")


def test_what_python_imports_late_can_be_read(process: ConfinedProcess) -> None:
    assert attempt(process, "__import__('colorsys').rgb_to_hsv(0, 0, 0)") == "(0.0, 0.0, 0)"
    assert attempt(process, "__import__('numpy.testing').__name__") == "'numpy'"


def test_nothing_can_be_written_anywhere(process: ConfinedProcess, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("as it was")
    for code in (
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"open({str(tmp_path / 'there')!r}, 'w')",
        f"open({str(tmp_path / 'there')!r}, 'a').write('x')",
        f"os.truncate({str(tmp_path / 'there')!r}, 0)",
        f"os.unlink({str(tmp_path / 'there')!r})",
        f"os.rename({str(tmp_path / 'there')!r}, {str(tmp_path / 'new')!r})",
        f"os.symlink('/', {str(tmp_path / 'new')!r})",
        f"os.chmod({str(tmp_path / 'there')!r}, 0o777)",
        f"os.utime({str(tmp_path / 'there')!r})",
        f"os.mkdir({str(tmp_path / 'new')!r})",
        "open('here', 'w')",
        f"open({str(Path(__file__).with_name('new'))!r}, 'w')",
    ):
        assert attempt(process, code).partition(":")[0] in ("PermissionError", "FileNotFoundError", "OSError"), code
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "as it was"
    assert attempt(process, "resource.getrlimit(resource.RLIMIT_FSIZE)[0]") == "0"


def test_the_environment_is_empty_and_the_working_directory_is_nowhere(process: ConfinedProcess) -> None:
    assert attempt(process, "dict(os.environ)") == "{}"
    assert b"planted" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    here = Path(f"/proc/{process.pid}/cwd").readlink()
    assert here.name.endswith(" (deleted)") and here.name.startswith("twostream-decoder-")
    assert list(Path(f"/proc/{process.pid}/cwd").iterdir()) == []


@needs_seccomp
def test_no_address_can_be_reached(process: ConfinedProcess, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        for server_ in (server, local):
            server_.settimeout(0.2)
        port = server.getsockname()[1]
        for code in (
            f"socket.create_connection(('127.0.0.1', {port}))",
            f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
            f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socketpair()",
            "socket.send_fds(files, [b'x'], [0])",
        ):
            assert attempt(process, code).startswith("PermissionError"), code
        for server_ in (server, local):
            with pytest.raises(TimeoutError):
                server_.accept()


@needs_seccomp
@pytest.mark.parametrize(
    "code",
    [
        "os.execv('/bin/true', ['true'])",
        f"os.execv({sys.executable!r}, ['python'])",
        "subprocess.run(['/bin/true'])",
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getppid(), 0)",
        "os.kill(-1, 0)",
        "os.pidfd_open(os.getppid())",
        "__import__('fcntl').ioctl(2, 0x5412, b'x')",
    ],
)
def test_no_program_can_be_started_and_no_process_be_touched(process: ConfinedProcess, code: str) -> None:
    assert attempt(process, code).startswith("PermissionError")


@needs_seccomp
def test_no_interface_of_the_kernel_but_the_usual_ones_is_there(process: ConfinedProcess) -> None:
    libc = "ctypes.CDLL(None, use_errno=True)"
    for number in (425, 470, 435) if platform.machine() == "x86_64" else ():  # io_uring, one that is not yet, clone3
        assert attempt(process, f"({libc}.syscall({number}, 0, 0), ctypes.get_errno())") in ("(-1, 1)", "(-1, 38)")
    assert attempt(process, f"{libc}.unshare(0x10000000)") == "-1"
    assert attempt(process, f"{libc}.ptrace(16, os.getppid(), 0, 0)") == "-1"


def test_threads_can_be_started_and_are_confined_too(process: ConfinedProcess) -> None:
    pool = "__import__('concurrent.futures').futures.ThreadPoolExecutor(1)"
    assert attempt(process, f"{pool}.submit(max, 1, 2).result()") == "2"
    for code in ("Path('/etc/passwd').read_text()", "socket.socket()"):
        if landlock.version() and platform.machine() in seccomp.ARCHITECTURES:
            assert attempt(process, f"{pool}.submit(lambda: {code}).result()").startswith("PermissionError")


def test_memory_files_and_dumps_are_bound_and_the_bounds_stay(process: ConfinedProcess) -> None:
    assert attempt(process, "len(bytearray(1 << 26))") == str(1 << 26)
    assert attempt(process, "bytearray(1 << 30)").startswith("MemoryError")
    assert 50 < int(attempt(process, "open_files()")) < MOST_FILES
    assert attempt(process, "resource.getrlimit(resource.RLIMIT_CORE)") == "(0, 0)"
    for bound in ("AS", "CPU", "CORE", "FSIZE", "NOFILE"):
        code = f"resource.setrlimit(resource.RLIMIT_{bound}, (1 << 20, 1 << 40))"
        assert attempt(process, code).partition(":")[0] in ("PermissionError", "ValueError"), bound


def test_no_privilege_is_left(process: ConfinedProcess) -> None:
    status = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert status["NoNewPrivs"] == "1"
    assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}


def test_a_file_that_is_lent_can_be_read_though_its_path_cannot(process: ConfinedProcess, tmp_path: Path) -> None:
    (tmp_path / "lent").write_text("content")
    with (tmp_path / "lent").open("rb") as file:
        process.send_file(file)
    assert attempt(process, "receive_file(files).read()") == "b'content'"


def test_a_file_lent_for_writing_is_the_only_one_that_can_be(process: ConfinedProcess, tmp_path: Path) -> None:
    process.allow_writing(True)
    with (tmp_path / "lent").open("wb") as file:
        process.send_file(file)
    assert attempt(process, "(lambda file: (file.write(b'content'), file.close()))(receive_file(files))") == "(7, None)"
    assert attempt(process, f"open({str(tmp_path / 'other')!r}, 'w')").startswith("PermissionError")
    process.allow_writing(False)
    with (tmp_path / "refused").open("wb") as file:
        process.send_file(file)
    writing = "(lambda file: file.raw.write(b'content'))(receive_file(files))"
    assert "File too large" in attempt(process, writing)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"lent": "content", "refused": ""}


def test_what_a_kernel_does_not_offer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "from twostream_ray.data.video import confinement, landlock, seccomp\n"
        "landlock.version = lambda: 0; seccomp.ARCHITECTURES = {}\n"
        "import os, sys; from twostream_ray.data.video.confined_process import accept_confinement\n"
        "accept_confinement(os.fdopen(os.dup(1), 'wb')); sys.stdin.read()"
    )
    for _ in range(2):
        process = ConfinedProcess(code)
        process.wait_until_ready()
        process.end()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "other files can be read (no Landlock)" in line
    assert "sockets, programs and signals are not refused" in line


def test_the_working_directory_of_the_parent_gives_no_code(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    code = (
        "import sys; sys.path = [path for path in sys.path if path]\n"
        "from twostream_ray.data.video.confined_process import ConfinedProcess\n"
        "process = ConfinedProcess('import os; from twostream_ray.data.video.confined_process import *\\n'\n"
        "    'accept_confinement(os.fdopen(os.dup(1), \"wb\"))')\n"
        "process.wait_until_ready(); print('ready')\n"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, check=True)
    assert done.stdout == "ready\n"
