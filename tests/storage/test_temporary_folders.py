import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from twostream_ray.errors import StorageError
from twostream_ray.storage.temporary_folders import own_folder, sweep, temporary_folder

KILLED = """
import os, signal
from pathlib import Path
from twostream_ray.storage.temporary_folders import temporary_folder
with temporary_folder() as name:
    folder = Path(name)
    (folder / "model.safetensors").write_bytes(b"weights")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_behind(temporary: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
        check=False,
    )
    folder = Path(done.stdout.strip())
    assert (folder / "model.safetensors").exists()
    return folder


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    folders = [left_behind(temporary) for _ in range(2)]
    assert sweep() == 2
    assert not any(folder.exists() for folder in folders)


def test_the_folder_of_a_living_process_stays_and_goes_with_its_block(temporary: Path) -> None:
    with temporary_folder() as name:
        folder = Path(name)
        assert sweep() == 0 and folder.is_dir()
    assert not folder.exists()


def test_a_process_id_that_was_used_again_protects_nothing(temporary: Path) -> None:
    with temporary_folder() as name:
        folder = Path(name)
        parts = folder.name.split("-")
        other = folder.rename(folder.with_name("-".join([*parts[:4], "1", *parts[5:]])))
        assert sweep() == 1 and not other.exists()
        folder.mkdir()


@pytest.mark.parametrize(("part", "goes"), [(0, False), (1, True), (2, False)], ids=["host", "boot", "container"])
def test_what_was_left_before_a_restart_goes_and_what_another_host_or_container_has_stays(
    temporary: Path, part: int, goes: bool
) -> None:
    folder = left_behind(temporary)
    parts = folder.name.split("-")
    parts[part] = "0" * 8
    other = folder.rename(folder.with_name("-".join(parts)))
    assert sweep() == goes and other.exists() != goes


def test_nothing_of_others_is_touched(temporary: Path) -> None:
    folder = left_behind(temporary)
    precious, own = temporary / "precious", own_folder()
    shutil.copytree(folder, precious)
    names = ["tmpabcd", "checkpoint_tmp_1", "keep", f"{folder.name}.keep", f"x{folder.name}"]
    for name in names:
        shutil.copytree(folder, own / name)
    link = folder.with_name(f"{folder.name}x")
    link.symlink_to(precious)
    file = folder.with_name(f"{folder.name}y")
    file.write_text("a file")
    (folder / "link").symlink_to(precious)
    assert sweep() == 1 and not folder.exists()
    assert (precious / "model.safetensors").exists() and link.is_symlink() and file.exists()
    assert all((own / name / "model.safetensors").exists() for name in names)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_folder_of_another_user_stays(temporary: Path) -> None:
    folder = left_behind(temporary)
    os.chown(folder, 12345, 12345)
    assert sweep() == 0 and folder.exists()


def own(shared: Path) -> Path:
    return shared / f"twostream-{os.getuid()}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_refused(shared: Path) -> None:
    own(shared).mkdir(mode=0o700)
    os.chown(own(shared), 65534, 65534)
    with pytest.raises(StorageError, match="belongs to user 65534"):
        own_folder()


def test_the_samples_that_trials_share_lie_in_the_users_own_folder_on_whichever_machine(
    shared: Path, tmp_path: Path
) -> None:
    from twostream_ray.data.loading.sample_cache import SampleCache

    for root in (shared, tmp_path / "elsewhere"):  # as of a process whose TMPDIR is another
        root.mkdir(exist_ok=True)
        cache = root / own(shared).name / "samples-0123"
        SampleCache(str(cache), limit_bytes=1, depends_on={})
        assert cache.is_dir() and cache.parent.stat().st_mode & 0o777 == 0o700
        assert own_folder(cache.parent) == cache.parent
    precious = tmp_path / "precious"
    precious.mkdir()
    planted = tmp_path / "planted" / own(shared).name
    planted.parent.mkdir()
    planted.symlink_to(precious)
    with pytest.raises(StorageError, match="mode 0700"):
        SampleCache(str(planted / "samples-0123"), limit_bytes=1, depends_on={})
    assert not list(precious.iterdir())
