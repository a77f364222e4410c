import errno
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3 import reached_at

from twostream_ray import storage
from twostream_ray.errors import AccessError, MissingError, StorageError, is_disk_full, own_error
from twostream_ray.storage.local_files import explained


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_files_that_never_end_are_refused_and_not_waited_for(tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "zeros").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for name in ("fifo", "zeros", "socket", "."):
        for read in (storage.read_bytes, lambda uri: storage.on_disk(uri).__enter__(), copied(tmp_path / "copy")):
            with pytest.raises(AccessError, match=r"cannot read .*: expected a regular file, found a "):
                read(f"{tmp_path}/{name}")
    listener.close()


def copied(path: Path) -> Callable[[str], None]:
    return lambda uri: storage.copy_to_disk(uri, path)


def test_a_sparse_file_of_terabytes_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(4 << 40)
    uri = str(tmp_path / "sparse")
    with pytest.raises(AccessError, match=r"sparse: it may have at most \d+ bytes, it has 4398046511104"):
        storage.read_bytes(uri)
    with pytest.raises(AccessError, match="at most 1000 bytes"), storage.on_disk(uri, limit_bytes=1000):
        pass
    with pytest.raises(AccessError, match="at most 1000 bytes"):
        storage.copy_to_disk(uri, tmp_path / "copy", limit_bytes=1000)
    assert not (tmp_path / "copy").exists()


def test_a_full_disk_is_said_of_the_copy_and_not_of_the_store_that_it_came_from(
    object_store: int, tmp_path: Path
) -> None:
    """Waiting for the store would have taken a minute, and the network was named."""
    (tmp_path / "local").write_bytes(b"x")
    with reached_at(f"http://127.0.0.1:{object_store}"):
        storage.write_bytes("s3://archive/full", b"x")
        for uri in (str(tmp_path / "local"), "s3://archive/full"):
            begun = time.monotonic()
            with pytest.raises(StorageError, match=r"No space left on device: /dev/full\): make room") as refused:
                storage.copy_to_disk(uri, Path("/dev/full"))
            assert "store" not in str(refused.value) and is_disk_full(refused.value)
            assert time.monotonic() - begun < 20


def test_an_error_of_our_own_is_nobody_s_cause_but_the_operating_system_s(tmp_path: Path, fifo: Path) -> None:
    """An error that is its own cause would be followed for ever."""
    with pytest.raises(AccessError) as refused:
        storage.read_bytes(str(fifo))
    assert refused.value.__cause__ is None and own_error(refused.value) is refused.value
    with pytest.raises(MissingError) as missing:
        storage.read_bytes(str(tmp_path / "nope"))
    assert isinstance(missing.value.__cause__, FileNotFoundError)


def test_writing_and_deleting_touch_only_the_file_that_was_named(tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to("theirs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_folder").symlink_to("folder")
    storage.write_bytes(str(tmp_path / "link"), b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs" and not (tmp_path / "link").is_symlink()
    for name, kind in (("fifo", "a FIFO"), ("folder", "a directory"), ("to_folder", "a directory")):
        with pytest.raises(AccessError, match=f"cannot write .*{name}: expected a file, found {kind}"):
            storage.write_bytes(str(tmp_path / name), b"ours")
    for name in ("fifo", "folder"):
        with pytest.raises(AccessError, match=f"cannot delete .*{name}: expected a file, found a"):
            storage.delete(str(tmp_path / name))
    storage.delete(str(tmp_path / "to_folder"))
    storage.delete(str(tmp_path / "theirs" / "below"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder", "link", "theirs"]


def test_whatever_the_disk_refuses_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    refused = [
        ("file/below", "expected a directory, found a file"),
        ("gone/below", "expected a directory, found a file or a broken link"),
        ("n" * 300, "the name is too long"),
    ]
    for name, words in refused:
        with pytest.raises(StorageError, match=f"^cannot write [^\n]*{words}[^\n]*$"):
            storage.write_bytes(str(tmp_path / name), b"1")
    for code, words in ((errno.EROFS, "read-only"), (errno.EDQUOT, "quota"), (errno.EFBIG, "ulimit -f")):
        broken = OSError(code, os.strerror(code), str(tmp_path / ".1.partial"))
        assert words in str(explained(broken, "cannot write x", path=tmp_path / "x"))
    with pytest.raises(AccessError, match="gone: it is a broken link; fix or remove it"):
        storage.read_bytes(str(tmp_path / "gone"))


def test_a_full_file_system_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"old")
    code = (
        "import resource, signal, sys; from twostream_ray import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); storage.write_bytes(sys.argv[1], bytes(5000))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(
        "x: the file exceeds the size limit; raise `ulimit -f` or choose another file system"
    )
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_a_directory_that_cannot_be_read_is_named_not_passed_over(tmp_path: Path, unreadable: Path) -> None:
    (unreadable / "walk" / "x.mp4").write_bytes(b"1")
    (unreadable / "walk").chmod(0)
    with as_somebody(), pytest.raises(AccessError, match=r"cannot list .*: access denied; .*/walk\)"):
        list(storage.list_files(str(unreadable)))
    (unreadable / "walk").chmod(0o755)
    for name in (".Trash", "lost+found"):
        (unreadable / name).mkdir(mode=0)
    with as_somebody():
        assert list(storage.list_files(str(unreadable))) == [("walk/x.mp4", 1)]
        assert list(storage.list_entries(str(unreadable))) == [
            (".Trash", "access denied; check the permissions of the path"),
            ("lost+found", "access denied; check the permissions of the path"),
            ("walk/x.mp4", 1),
        ]


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A directory outside the test's own, which is root's alone where root tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "walk").mkdir(mode=0o755)
        yield Path(folder)


@contextmanager
def as_somebody() -> Iterator[None]:
    """Without root's right to read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_directory_too_deep_for_a_path_is_named_not_passed_over(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=at)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with pytest.raises(AccessError, match=r"^cannot list .*: the name is too long; choose a shorter one \(/.*d\)$"):
        list(storage.list_files(str(tmp_path)))


def test_links_to_nothing_to_a_parent_and_to_themselves_are_left_out_by_name(tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.mp4").write_bytes(b"1")
    (tmp_path / "a/gone.mp4").symlink_to("/nowhere/y.mp4")
    (tmp_path / "a/itself.mp4").symlink_to("itself.mp4")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "a/zero.mp4").symlink_to("/dev/zero")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/caf\xe9.mp4"))).write_bytes(b"1")
    left_out = [
        ("caf\\xe9.mp4", "its name is not UTF-8: rename it"),
        ("gone.mp4", "a link to nothing"),
        ("itself.mp4", "a link that cannot be read: it is a cyclic symbolic link; check the path"),
        ("up", "a link to a directory above it"),
        ("x.mp4", 1),
        ("zero.mp4", "a FIFO, socket or device"),
    ]
    assert list(storage.list_entries(str(tmp_path))) == [
        *((f"a/{name}", why) for name, why in left_out),
        *((f"b/{name}", why) for name, why in left_out),
        ("fifo", "a FIFO, socket or device"),
    ]
    assert list(storage.list_files(str(tmp_path))) == [("a/x.mp4", 1), ("b/x.mp4", 1)]


def test_a_root_that_is_there_is_never_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "gone").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        ("file", "expected a directory"),
        ("gone", "a broken link"),
        ("loop", "a cyclic"),
    ):
        with pytest.raises(AccessError, match=words) as refused:
            list(storage.list_files(str(tmp_path / name)))
        assert not isinstance(refused.value, MissingError)
    with pytest.raises(MissingError, match="nope: it does not exist"):
        list(storage.list_files(str(tmp_path / "nope")))
