import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign_videos import encoded, pictures
from small_ingests import SMALL, config, files
from whole_shards import write_shard

from twostream_ray import storage
from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract, decode_field
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, open_shards, read_row_group
from twostream_ray.data.shards.writer import plan_shards
from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, in_text_order
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.data.video.raw_video import FrameStream, Note
from twostream_ray.errors import AccessError, CatalogError, ConfigError, LeaseError
from twostream_ray.runs.ingest import catalog_of, estimate, ingest, refuse_overlap
from twostream_ray.runs.settings import IngestConfig

LEGACY = FlowContract(short_side_px=48, coding="legacy255")


def test_before_the_work_begins_it_is_said_how_much_it_is(videos: Path) -> None:
    wanted = config(videos, Path("nowhere"))
    said = estimate(catalog_of(wanted).clips, wanted)
    # 76 clips of 16 frames
    assert re.fullmatch(
        r"76 clips to ingest: about 1,216 frames, \d+ MB of shards, 0\.\d min on \d+ cores \(5 clips sampled\)", said
    )


def test_a_second_ingest_into_one_place_is_refused_while_the_first_is_at_work(videos: Path, tmp_path: Path) -> None:
    wanted = config(videos, tmp_path / "shards")

    def meanwhile(_: str) -> None:
        with pytest.raises(
            LeaseError, match=r"ingest needs exclusive use of .*/shards, which is in use by \S+ on .* since 20"
        ):
            ingest(wanted)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(wanted, announce=meanwhile)
    assert not (tmp_path / "shards").exists(), "nothing is left that would refuse the next"


def overlapping(videos: Path, tmp_path: Path) -> dict[str, IngestConfig]:
    """Ingests whose shards would be among what they read, by every name that a folder can have."""
    link, shards = tmp_path / "link", tmp_path / "linked" / "shards"
    link.symlink_to(videos)
    shards.parent.mkdir()
    shards.symlink_to(videos / "train")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "clips.txt").write_text("down/00000.mp4 train\n")
    apart = tmp_path / "apart"
    catalog, s3 = CatalogConfig(root=str(videos)), CatalogConfig(root="s3://bucket/data/videos")
    other = CatalogConfig(root=str(link / "train"), name="b")
    return {
        "the root": config(videos, videos),
        "the root as a URI": replace(config(videos, apart), out=f"file://{videos}/"),
        "the root by a link": config(videos, link),
        "a link to the root": config(link, videos),
        "by ..": config(videos, videos / "train" / ".." / "." / "shards"),
        "inside": config(videos, videos / "shards"),
        "around": config(videos, videos.parent),
        "relative": replace(config(videos, apart), out=os.path.relpath(videos)),
        "shards/ is a link into the root": config(videos, shards.parent),
        "another catalog": config(apart, videos / "train/x", catalog=replace(catalog, name="a"), more=[other]),
        "flow": config(apart, link / "val", flow=LEGACY, catalog=CatalogConfig(root="x", flow_images=str(videos))),
        "lists": config(
            apart, lists, catalog=CatalogConfig(root=str(videos / "train"), lists=str(lists / "clips.txt"))
        ),
        "s3": replace(config(Path("x"), apart, catalog=s3), out="s3://bucket//data/"),
        "inside s3": replace(config(Path("x"), apart, catalog=s3), out="s3://bucket/data/videos/x"),
    }


def test_shards_are_never_written_among_what_is_ingested(videos: Path, tmp_path: Path) -> None:
    before = files(videos)
    for case, wanted in overlapping(videos, tmp_path).items():
        with pytest.raises(ConfigError, match=r"out must be separate from catalog\.(root|lists|flow_images), got "):
            refuse_overlap(replace(wanted, replace=True), Catalog(clips=(), classes=(), notes=()))
            pytest.fail(case)
    for out in (videos, videos / "shards", videos.parent):
        with pytest.raises(ConfigError, match=r"out must be separate from catalog.root, got "):
            ingest(config(videos, out, replace=True))
    assert files(videos) == before
    assert not storage.contains("s3://bucket/data", "s3://bucket/data2") and not storage.contains("/a/b", "/a/bc")


def test_a_class_folder_that_is_a_link_to_the_shards_is_refused(videos: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(videos / "train" / "up", out / "parts")
    root.mkdir()
    (root / "up").symlink_to(out / "parts")
    with pytest.raises(ConfigError, match=r"out must be separate from the videos, .*/videos/up is a link into .*/out"):
        ingest(config(root, out))
    assert files(out / "parts") == files(videos / "train" / "up")


@pytest.mark.parametrize(
    "target", ["/proc/x", "/proc/x/y", "/dev/null", "/dev/null/x", "{file}", "{file}/x", "{dangling}"]
)
def test_a_place_that_cannot_be_written_is_one_line_before_the_work_begins(
    videos: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("/proc/x")
    out = target.format(file=tmp_path / "file", dangling=tmp_path / "dangling")
    assert main(["ingest", "--catalog.root", str(videos), "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("twostream ingest: error: ") and (out in line or str(Path(out).parent) in line)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_task_cannot_write_ends_the_ingest_in_one_line(
    cluster: None, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shards").symlink_to(tmp_path / "a disk that is not mounted")
    arguments = ["--catalog.root", str(videos / "test"), "--out", str(tmp_path / "out"), "--flow.short_side_px", "48"]
    assert main(["ingest", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot write" in line or "Trace" in line]
    assert re.search(r"cannot write .*/out/shards/[0-9a-f]{16}-[0-9]+[.]parquet: ", line)


def test_videos_in_a_class_folder_called_parts_survive_every_ingest(
    cluster: None, videos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "project"
    for name, source in (("parts", "up"), ("shards", "down")):
        (root / name).mkdir(parents=True)
        for path in sorted((videos / "val" / source).iterdir()):
            shutil.copy(path, root / name)
    before = files(root)
    for out in (root, root.parent, root / "shards"):
        with pytest.raises(ConfigError, match=r"out must be separate from catalog.root"):
            ingest(config(root, out))
    assert files(root) == before

    out = tmp_path / "set"
    first = ingest(config(root, out))
    (out / "shards" / "mine.mp4").write_bytes(b"mine")
    kept = files(out)
    second = tmp_path / "second"
    shutil.copytree(videos / "test", second)
    with pytest.raises(ConfigError, match=r"the finished shards of another data set: none of its 4 clips"):
        ingest(config(second, out))
    (away := root / "parts").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"finished shards with 2 clips of folders in which the catalog of .*project"):
        ingest(config(root, out))
    (tmp_path / "away").rename(away)
    assert files(out) == kept
    assert ingest(config(root, out)).done_before == first.clips == 4

    said: list[str] = []
    report = ingest(config(second, out, replace=True), announce=said.append)
    assert report.clips == 20 and report.done_before == 0
    assert re.match(
        r"1 finished shard will go: the catalog no longer has one of the clips, for example parts/", said[0]
    )
    assert re.match(r"1 finished shard went: the catalog no longer has", report.notes[-2])
    assert report.notes[-1].startswith("1 file in parts/ and shards/ of ") and report.notes[-1].endswith("mine.mp4")
    names = {f"shards/{name}" for name in open_shards(str(out)).shard_names}
    assert {name for name in files(out) if name.startswith("shards/")} == names | {"shards/mine.mp4"}


def test_what_is_to_be_known_about_videos_reaches_the_report_and_stays_there(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "videos" / "walk"
    root.mkdir(parents=True)
    (root / "plain.mkv").write_bytes(encoded("libx264", pictures(4)))
    for name in ("one", "two"):
        (root / f"{name}.mkv").write_bytes(encoded("libx264", pictures(4), x264_params="interlaced=1"))
    wanted = config(root.parent, tmp_path / "out")
    notes = ingest(wanted).notes
    assert f"2 of 3 clips have {Note.INTERLACED} (walk/one.mkv)" in notes
    assert ingest(wanted).notes == notes


def test_shards_labelled_when_numbers_were_ordered_as_texts_keep_their_labels(videos: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "out"
    source = next((videos / "train").rglob("*.mp4"))
    for name in ("1", "10", "2"):
        (root / name).mkdir(parents=True)
        shutil.copy(source, root / name / "a.mp4")
    wanted = config(root, out)
    numbered = catalog_of(wanted)
    assert numbered.classes == ("1", "2", "10")
    as_texts = in_text_order(numbered, [wanted.catalog])
    (plan,) = plan_shards(as_texts.clips, contract=SMALL, rows_per_shard=16)
    max_frames = wanted.max_frames
    write_shard(plan, out=str(out), contract=SMALL, max_frames=max_frames)
    before = files(out / "shards")
    report = ingest(wanted)  # starts no Ray: there is nothing to write
    assert "classes keep the order of texts (1, 10, 2 ...) that the finished shards have" in report.notes[-1]
    assert open_shards(str(out)).classes == ("1", "10", "2") and files(out / "shards") == before

    def say(sentence: str) -> None:
        raise RuntimeError(sentence)

    shutil.copytree(root / "2", root / "11")
    for change in ({}, {"replace": True}):
        with pytest.raises(RuntimeError, match="1 finished shard will go: labels or splits have changed, for example"):
            ingest(replace(wanted, **change), announce=say)
    assert files(out / "shards") == before


def test_shards_of_other_encoders_still_count_and_a_redone_ingest_says_so(videos: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "out"
    for number, source in enumerate(sorted((videos / "train").rglob("*.mp4"))[:8]):
        target = root / "train" / "ab"[number % 2] / f"{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    wanted = config(root, out)
    for plan in plan_shards(catalog_of(wanted).clips, contract=SMALL, rows_per_shard=2):
        write_shard(plan, out=str(out), contract=SMALL, max_frames=wanted.max_frames)
    assert ingest(wanted).notes == []  # starts no Ray: there is nothing to write
    before = files(out / "shards")
    earlier, unknown, same, _ = sorted((out / "parts").iterdir())
    now = json.loads(same.read_text())["encoder"]
    earlier.write_text(json.dumps({**json.loads(earlier.read_text()), "encoder": {**now, "x264": "core 157"}}))
    as_before = json.loads(unknown.read_text())
    del as_before["encoder"]
    unknown.write_text(json.dumps(as_before))
    for _ in range(2):
        report = ingest(wanted)
        assert (report.clips, report.done_before) == (8, 8)
        assert [note[: note.index(" and stay")] for note in sorted(report.notes)] == [
            "1 of 4 shards were encoded by versions that their records do not name",
            f"1 of 4 shards were encoded by x264 core 157 (now {now['x264']})",
        ]
    assert open_shards(str(out)).index.num_rows == 8 and files(out / "shards") == before


def test_an_interrupted_ingest_goes_on_and_ends_byte_identical(
    cluster: None, some_videos: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    small = {"rows_per_shard": 16}
    first = ingest(config(some_videos, whole, **small))
    shutil.copytree(whole, broken)
    part = sorted((broken / "parts").iterdir())[0]
    lost = json.loads(part.read_text())
    part.unlink()
    (broken / "shards" / lost["shard"]).write_bytes(b"half a shard")
    for name in ("manifest.json", "index.parquet"):
        (broken / name).unlink()
    report = ingest(config(some_videos, broken, **small))
    assert report.done_before == first.clips - len(lost["clips"])
    assert files(broken) == files(whole)
    assert ingest(config(some_videos, broken, **small)).done_before == first.clips


def test_a_changed_video_is_taken_again_and_leaves_no_orphan(cluster: None, some_videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest(config(some_videos, out))
    changed, other = sorted(some_videos.rglob("*.mp4"))[:2]
    shutil.copy(other, changed)
    added = changed.with_name("added.mp4")
    shutil.copy(other, added)
    report = ingest(config(some_videos, out))
    assert report.clips == len(list(some_videos.rglob("*.*")))
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(path.name for path in (out / "shards").iterdir()) == sorted(s["name"] for s in manifest["shards"])


def test_a_missing_root_and_a_class_that_cannot_be_read_are_refused(tmp_path: Path, some_videos: Path) -> None:
    with pytest.raises(AccessError, match=r"cannot list .*nowhere: it does not exist"):
        ingest(config(tmp_path / "nowhere", tmp_path / "out"))
    (some_videos / "train" / "nothing").symlink_to("/nowhere")
    with pytest.raises(CatalogError, match=r"nothing under .* cannot be read \(a link to nothing\)"):
        ingest(config(some_videos, tmp_path / "out"))


def test_videos_and_frames_with_flow_images_are_two_heads_of_one_shard_set(
    cluster: None, some_videos: Path, tmp_path: Path
) -> None:
    archive, gap = tmp_path / "archive", 3
    sources = [path for folder in sorted(some_videos.glob("train/*"))[:3] for path in sorted(folder.iterdir())[:2]]
    for path in set(some_videos.glob("train/*/*")) - set(sources):
        path.unlink()
    shutil.rmtree(max(some_videos.glob("train/*")))
    listed = []
    for number, path in enumerate(sources):
        frames = list(FrameStream(path.read_bytes()))
        folder = archive / "frames" / f"clip{number}"
        folder.mkdir(parents=True)
        for index, frame in enumerate(frames, start=1):
            cv2.imwrite(str(folder / f"img_{index:05}.png"), frame[..., ::-1])
        for component, level in (("u", 140), ("v", 110 + number)):
            (archive / "flow" / component / folder.name).mkdir(parents=True)
            for index in range(1, len(frames)):
                image = np.full(frames[0].shape[:2], level, np.uint8)
                cv2.imwrite(str(archive / "flow" / component / folder.name / f"frame{index:06}.jpg"), image)
        listed.append(f"{'run' if number % 2 else 'walk'}/{folder.name}.avi train1\n")
    (archive / "flow/u" / f"clip{gap}" / "frame000002.jpg").unlink()
    (archive / "splits.txt").write_text("".join(listed))

    given = FlowContract(short_side_px=48, coding="legacy255", algorithm="dis")
    settings = IngestConfig(
        catalog=CatalogConfig(root=str(some_videos), name="shapes"),
        more=[
            CatalogConfig(
                name="stored",
                root=str(archive / "frames"),
                lists=str(archive / "splits.txt"),
                frames=True,
                flow_images=str(archive / "flow"),
            )
        ],
        out=str(tmp_path / "out"),
        flow=given,
        max_bad_fraction=0.2,
    )
    report = ingest(settings)
    assert (report.clips, report.quarantined, report.reasons) == (6 + 5, 1, {"DecodeError": 1})
    assert f"flow/u/clip{gap}, 2 is missing of 1.." in (tmp_path / "out/quarantine.csv").read_text()
    shard_set = open_shards(settings.out)
    assert shard_set.head_classes == (3, 2) and shard_set.classes[3:] == ("stored/run", "stored/walk")
    assert shard_set.quarantined_by_head == {"train1": (0, 1)}
    assert len(shard_set.split("train1")) == 5 and len(shard_set.split("train")) == 6
    for row in shard_set.index.to_pylist():
        if row["clip_id"].startswith("stored/"):
            number = int(row["clip_id"].removeprefix("stored/clip"))
            assert row["label"] == (3 if number % 2 else 4)
            uri = f"{shard_set.uri}/shards/{shard_set.shard_names[row['shard']]}"
            group, within = divmod(row["row"], ROWS_PER_GROUP)
            ((_, clip),) = read_row_group(uri, group, want_rgb=True, want_flow=True, rows=[within])
            source = np.stack(list(FrameStream(sources[number].read_bytes())))
            stored = fetch_frames(clip.video, range(clip.num_frames), num_frames=clip.num_frames)
            assert np.abs(stored.astype(int) - source).mean() < 4
            assert clip.flow is not None and len(clip.flow) == len(source) - 1
            levels = np.stack([decode_field(content) for content in clip.flow])
            assert np.abs(levels.mean(axis=(0, 2, 3)) - [140, 110 + number]).max() < 0.6
    assert ingest(settings).done_before == 12
