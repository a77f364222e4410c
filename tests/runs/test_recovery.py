"""Rows of docs/recovery.md about disks and shards: each is provoked, and what is seen and done is what the page says.

Wrong keys: tests/storage/test_object_store.py. A full disk is a small tmpfs in a mount namespace of its own.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from noise_shards import noise_shards
from pages import ROOT

from twostream_ray.data.shards.verify import verify_shards
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.errors import ShardError
from twostream_ray.storage import uris

PAGE = (ROOT / "docs/recovery.md").read_text()
INGEST = "ingest {videos} --flow.short_side_px 48 --rows_per_shard 4 --out {out}"
TRAIN = (
    "train {out} --config own_videos_cpu --name small --storage {storage} --tracking.uri sqlite:///{tmp}/mlflow.db "
    "--data.transforms.crop_px 32 --data.transforms.short_side_px null --training.epochs 2 --training.global_batch 4 "
    "--training.warmup_epochs 0 --data.lanes 4 --data.test_split test --tracking.register false"
)


def row(failure: str) -> list[str]:
    """The cells of the page's row on a failure: what is seen, what happens by itself, what to do."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {failure} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    out = tmp_path / "videos"
    synthesize(SyntheticConfig(train_clips=16, val_clips=0, test_clips=8, size_px=48), out, workers=1)
    return out


def twostream(command: str, *, before: str | None = None, **places: Path) -> subprocess.CompletedProcess[str]:
    """A command, with `before` in a mount namespace of its own in which that was run."""
    words = command.format(**places) if places else command
    script = " && ".join([*filter(None, [before]), f"{sys.executable} -m twostream_ray.cli {words}"])
    namespace = ["unshare", "-m"] if before else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return subprocess.run([*namespace, "bash", "-c", script], env=kept, capture_output=True, text=True, check=False)


WRITE = """
import subprocess, sys
from pathlib import Path
from noise_shards import noise_shards
from twostream_ray.errors import StorageError
small, roomy = map(Path, sys.argv[1:])
print(noise_shards(str(roomy), rows=(5, 3), num_fields=40).hash)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
try:
    noise_shards(str(small), rows=(5, 3), num_fields=40)
except StorageError as error:
    print(error)
print(*small.rglob("*"))
subprocess.run(["mount", "-o", "remount,size=1g", str(small)], check=True)
print(noise_shards(str(small), rows=(5, 3), num_fields=40).hash)
"""


@pytest.mark.slow
def test_on_a_full_disk_nothing_half_written_is_taken_for_whole(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", WRITE, str(small), str(tmp_path / "roomy")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"a file system of its own wants rights: {done.stderr.strip()}")
    whole, said, left, again = done.stdout.splitlines()
    (quoted,) = re.findall("`([^`]*)`", row("a disk is full")[0])
    assert re.fullmatch(re.escape(quoted).replace("PATH", rf"{small}/\S+"), said), said
    assert "manifest.json" not in left and again == whole


def test_a_byte_that_has_changed_on_the_disk_is_named_with_its_file_and_row(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=(5, 3), num_fields=40)
    path = tmp_path / "shards" / shard_set.shard_names[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError) as seen:
        verify_shards(shard_set)
    (quoted,) = re.findall("`([^`]*)`", row("a shard is damaged or gone")[0])
    assert re.fullmatch(re.escape(quoted).replace("FILE", re.escape(str(path))).replace("N", r"\d+"), str(seen.value))


def test_words_for_wrong_keys_are_those_of_the_store() -> None:
    (quoted,) = re.findall("`([^`]*)`", row("keys are wrong or have expired")[0])
    source = inspect.getsource(uris)
    assert quoted.partition(": ")[2] in source and "access denied" in quoted


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(900)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(tmp_path: Path, videos: Path) -> None:
    _, by_itself, todo = row("a disk is full")
    assert "no partial file" in by_itself and "the same command" in todo
    places = {"videos": videos, "out": tmp_path / "shards", "storage": tmp_path / "runs", "tmp": tmp_path}
    for place in (places["out"], places["storage"]):
        place.mkdir()
    assert twostream(INGEST, **places).returncode == 0
    assert twostream(TRAIN, **places).returncode == 0
    whole = (places["out"] / "manifest.json").read_bytes()
    for command, place, kept in ((INGEST, places["out"], "ingest"), (TRAIN, places["storage"], "train")):
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        small = tmp_path / kept
        small.mkdir()
        moved = places | {"out" if command == INGEST else "storage": small}
        words = command.format(**moved)
        room = f"mount -t tmpfs -o size={size // 2 // 4096 * 4096} none {small}"
        again = f"mount -o remount,size=1g {small} && {sys.executable} -m twostream_ray.cli {words}"
        done = twostream(f"{words}; echo code=$?; {again} && cp -r {small} {small}-whole", before=room)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "code=2" in done.stdout
        lines = [line for line in done.stderr.splitlines() if "the disk is full" in line]
        print(f"\nFULL {kept}: {lines}", flush=True)  # noqa: T201  (recorded in docs)
        assert lines and str(small) in lines[-1]
    assert (tmp_path / "ingest-whole/manifest.json").read_bytes() == whole
    assert (tmp_path / "train-whole/small/report.json").is_file()


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(900)
def test_a_damaged_shard_is_named_and_an_ingest_makes_that_one_again(tmp_path: Path, videos: Path) -> None:
    _, by_itself, todo = row("a shard is damaged or gone")
    assert by_itself.startswith("nothing") and "inspect SHARDS --verify" in todo
    places = {"videos": videos, "out": tmp_path / "shards", "storage": tmp_path / "runs", "tmp": tmp_path}
    assert twostream(INGEST, **places).returncode == 0
    shards = sorted((places["out"] / "shards").iterdir())
    whole = {path.name: path.read_bytes() for path in shards}
    modified = {path.name: path.stat().st_mtime_ns for path in shards}
    content = bytearray(whole[shards[0].name])
    content[len(content) // 2] ^= 1
    shards[0].write_bytes(content)
    trained = twostream(TRAIN, **places)
    last = trained.stderr.splitlines()[-1]
    print(f"\nDAMAGED train: {last}", flush=True)  # noqa: T201  (recorded in docs)
    assert trained.returncode == 2 and re.search(rf"{shards[0].name}, row", last) and "ingest again" in last
    verified = twostream(f"inspect {places['out']} --verify true --out {tmp_path}/picture.png")
    assert verified.returncode == 2 and shards[0].name in verified.stderr.splitlines()[-1]
    shards[0].unlink()
    gone = twostream(TRAIN, **places)
    print(f"\nGONE train: {gone.stderr.splitlines()[-1]}", flush=True)  # noqa: T201  (recorded in docs)
    assert gone.returncode == 2 and shards[0].name in gone.stderr.splitlines()[-1]
    assert twostream(INGEST, **places).returncode == 0
    assert {path.name: path.read_bytes() for path in shards} == whole
    changed = {path.name for path in shards if path.stat().st_mtime_ns != modified[path.name]}
    assert changed == {shards[0].name}
    shutil.rmtree(places["storage"])
    assert twostream(TRAIN, **places).returncode == 0
