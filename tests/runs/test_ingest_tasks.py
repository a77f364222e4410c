import heapq
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from whole_shards import write_shard

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.shards.writer import plan_shards, write_manifest
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.ingest import catalog_of, ingest
from twostream_ray.runs.ingest_tasks import Schedule
from twostream_ray.runs.settings import IngestConfig

SMALL = FlowContract(short_side_px=48)


def simulated(sizes: Sequence[int], *, cores: int, seconds: Sequence[float]) -> tuple[float, float, int]:
    """Clips prepared by this schedule on so many cores: seconds in all, seconds of idle cores while clips were still to
    be begun, and most clips held at once; clip k takes seconds[k % len(seconds)], and writing a shard takes nothing.
    """
    schedule, now, idle, number, most_held = Schedule(sizes), 0.0, 0.0, 0, 0
    held = dict.fromkeys(range(len(sizes)), 0)
    queue: list[int] = []  # given out, waiting for a core
    busy: list[tuple[float, int]] = []
    while schedule.done < sum(sizes):
        while (chosen := schedule.next_clip(cores=cores)) is not None:
            queue.append(chosen[0])
            held[chosen[0]] += 1
        while queue and len(busy) < cores:
            heapq.heappush(busy, (now + seconds[number % len(seconds)], queue.pop(0)))
            number += 1
        most_held = max(most_held, sum(held.values()))
        then, shard = heapq.heappop(busy)
        if number < sum(sizes):
            idle += (cores - len(busy) - 1) * (then - now)
        now = then
        if schedule.note_prepared(shard):
            schedule.note_written(shard)
            held[shard] = 0
    assert schedule.next_clip(cores=cores) is None
    return now, idle, most_held


def test_174_clips_in_11_shards_keep_16_cores_busy() -> None:
    seconds, idle, held = simulated([16] * 10 + [14], cores=16, seconds=[1.0])
    assert (seconds, idle) == (11.0, 0.0), "as 174 / 16 rounded up; a core a shard would take 16"
    assert held <= 64


@pytest.mark.parametrize(("sizes", "cores"), [([16] * 11, 16), ([128] * 40, 16), ([5], 4), ([1] * 90, 8), ([16, 4], 2)])
def test_no_core_waits_while_clips_are_left_however_uneven_they_are(sizes: list[int], cores: int) -> None:
    rng = random.Random(0)
    uneven = [rng.lognormvariate(0, 1) for _ in range(997)]
    seconds, idle, _ = simulated(sizes, cores=cores, seconds=uneven)
    assert idle == 0
    assert seconds <= sum(uneven[k % 997] for k in range(sum(sizes))) / cores + max(uneven)


@pytest.mark.slow
def test_a_thousand_shards_are_begun_few_at_a_time_also_behind_a_clip_that_never_ends() -> None:
    _, idle, held = simulated([128] * 1000, cores=16, seconds=[1.0])
    assert idle == 0 and held <= 3 * 128
    schedule, given = Schedule([128] * 1000), 0
    stuck = schedule.next_clip(cores=16)
    assert stuck == (0, 0)
    while (chosen := schedule.next_clip(cores=16)) is not None:
        given += 1
        if schedule.note_prepared(chosen[0]):
            schedule.note_written(chosen[0])
    assert given == 128 * 1000 - 1, "shards behind it are written"
    schedule = Schedule([16] * 1000)
    begun = set()
    while (chosen := schedule.next_clip(cores=2)) is not None:
        begun.add(chosen[0])
        schedule.note_prepared(chosen[0])
    assert begun == {0, 1, 2}, "none is written"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.own_cluster
def test_shards_are_the_same_bytes_on_1_core_on_all_and_written_one_after_the_other(
    videos: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    config = IngestConfig(catalog=CatalogConfig(root=str(videos)), out=str(tmp_path / "serial"), flow=SMALL)
    catalog = catalog_of(config)
    parts = [
        write_shard(plan, out=str(tmp_path / "serial"), contract=SMALL, max_frames=10_000)
        for plan in plan_shards(catalog.clips, contract=SMALL, rows_per_shard=16)
    ]
    write_manifest(str(tmp_path / "serial"), parts=parts, classes=catalog.classes, contract=SMALL)
    # A process of its own: this one is connected to the cluster of all cores, which has written the tests' shards.
    script = (
        "import ray; from twostream_ray.data.flow import FlowContract; "
        "from twostream_ray.data.sources.catalog import CatalogConfig; "
        "from twostream_ray.runs.ingest import IngestConfig, ingest; "
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False); "
        f"config = IngestConfig(catalog=CatalogConfig(root={str(videos)!r}), out={str(tmp_path / '1')!r}, "
        "flow=FlowContract(short_side_px=48), rows_per_shard=32); "
        "print(ingest(config).clips)"
    )
    made = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert made.stdout.split()[-1] == b"76"
    assert files(tmp_path / "1") == files(Path(shard_set.uri)) == files(tmp_path / "serial")


@pytest.mark.own_cluster
def test_workers_that_die_cost_their_clip_alone_and_videos_are_counted_once(videos: Path, tmp_path: Path) -> None:
    ended: list[int] = []

    def end_workers() -> None:
        """As a lack of memory would: the process that has the decoding child, in the middle of it."""
        for _ in range(3):
            time.sleep(0.4)
            for process in psutil.Process().children(recursive=True):
                parent = process.parent()
                if "answer_requests" in " ".join(process.cmdline()) and parent and parent.pid != os.getpid():
                    ended.append(parent.pid)
                    parent.kill()
                    break

    seen: list[tuple[int, int, int]] = []
    config = IngestConfig(
        catalog=CatalogConfig(root=str(videos)), out=str(tmp_path / "out"), flow=FlowContract(short_side_px=128)
    )
    with ray_session():
        thread: list[threading.Thread] = []

        def show(*counts: int) -> None:
            seen.append((counts[0], counts[1], counts[2]))
            if counts[0] and not thread:
                thread.append(threading.Thread(target=end_workers))
                thread[0].start()

        report = ingest(config, progress=show)
        thread[0].join()
    assert ended, "some did"
    assert (report.clips, report.quarantined) == (76, 0)
    assert seen[-1] == (76, 0, 76) and seen == sorted(seen)
    assert open_shards(config.out).index.num_rows == 76


@pytest.mark.own_cluster
def test_an_ingest_that_is_interrupted_keeps_whole_shards_and_ends_with_the_same_bytes(
    videos: Path, tmp_path: Path
) -> None:
    def config(name: str) -> IngestConfig:
        catalog = CatalogConfig(root=str(videos))
        return IngestConfig(catalog=catalog, out=str(tmp_path / name), flow=SMALL, rows_per_shard=16)

    def interrupt(done: int, bad: int, total: int) -> None:
        if list((tmp_path / "broken" / "parts").glob("*.json")):
            raise KeyboardInterrupt

    with ray_session():
        with pytest.raises(KeyboardInterrupt):
            ingest(config("broken"), progress=interrupt)
        kept = len(list((tmp_path / "broken" / "parts").glob("*.json")))
        assert 1 <= kept < 5
        report = ingest(config("broken"))
        assert report.done_before >= 12 and report.clips == 76
        ingest(config("whole"))
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
