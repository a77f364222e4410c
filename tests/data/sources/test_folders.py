import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import av
import numpy as np
import pytest
from av.format import ContainerFormat

from twostream_ray import storage
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sources import images
from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, read_catalog
from twostream_ray.data.sources.lists import VIDEO_SUFFIXES
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.video.prepare import Source
from twostream_ray.errors import AccessError, CatalogError, DecodeError


def catalog_of(
    listing: Mapping[str, Iterable[str]], *, texts: Mapping[str, str] | None = None, **settings: object
) -> Catalog:
    """Reads a data set from a dictionary of directories and files below them, as many bytes each as its name."""
    texts = texts or {}

    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        if directory in listing:
            return [(path, len(path)) for path in listing[directory]]
        return [(Path(uri).name, len(text)) for uri, text in texts.items() if str(Path(uri).parent) == directory]

    config = CatalogConfig(root="root", **settings)
    return read_catalog(config, list_files=list_files, read_bytes=lambda uri: texts[uri].encode())


def pictures(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/img_{number:05}.jpg" for folder in folders for number in range(1, count + 1)]


# -- folders of frames


def test_a_folder_of_pictures_is_a_clip_of_the_class_above_it() -> None:
    catalog = catalog_of(
        {"root": [*pictures("train/run/a", "train/swim/b", "test/run/c"), "train/run/d/", "train/run/a/list.txt"]},
        frames=True,
    )
    assert catalog.classes == ("run", "swim")
    assert [(clip.clip_id, clip.uri, clip.splits, clip.frames) for clip in catalog.clips] == [
        ("test/run/c", "root/test/run/c", ("test",), True),
        ("train/run/a", "root/train/run/a", ("train",), True),
        ("train/swim/b", "root/train/swim/b", ("train",), True),
    ]
    assert catalog.clips[1].size_bytes == 2 * len("train/run/a/img_00001.jpg")
    assert catalog.notes == (
        "files that are not images, left out: 1, for example train/run/a/list.txt",
        "empty folders, left out: 1, for example train/run/d/",
    )


UCF101 = {
    "lists/classInd.txt": "1 Run\n2 HandstandPushups\n",
    "lists/trainlist01.txt": "Run/v_Run_g02.avi 1\nHandstandPushups/v_HandStandPushups_g02.avi 2\n",
    "lists/testlist01.txt": "Run/v_Run_g01.avi\nHandstandPushups/v_HandstandPushups_g01.avi\n",
}


@pytest.mark.parametrize("depth", ["class/clip", "clip"])
def test_official_lists_find_the_frames_of_their_videos_in_class_folders_and_without(depth: str) -> None:
    folders = ["Run/v_Run_g01", "Run/v_Run_g02", "HandstandPushups/v_HandStandPushups_g02"]
    folders += ["HandstandPushups/v_HandStandPushups_g01"]
    if depth == "clip":
        folders = [folder.rpartition("/")[2] for folder in folders]
    catalog = catalog_of({"root": pictures(*folders)}, texts=UCF101, layout="ucf101", lists="lists", frames=True)
    assert {clip.clip_id for clip in catalog.clips} == set(folders)
    assert {clip.clip_id: (clip.label, clip.splits) for clip in catalog.clips}[folders[1]] == (0, ("train1",))
    assert catalog.notes == ("lines that differ from the file's name in case: 1; the file's name is used",)


def test_lists_and_tables_of_frames_may_name_folders() -> None:
    listing = {"root": pictures("run/a", "run/b", "swim/c.v2", "flat")}
    texts = {"s.txt": "run/a train\nrun/b.mp4 test\nswim/c.v2 train\n", "t.csv": "uri,label\nrun/a/,run\nflat,swim\n"}
    by_list = catalog_of(listing, texts=texts, lists="s.txt", frames=True)
    assert [clip.clip_id for clip in by_list.clips] == ["run/a", "run/b", "swim/c.v2"]
    by_table = catalog_of(listing, texts=texts, layout="table", lists="t.csv", frames=True)
    assert [(clip.clip_id, clip.class_name) for clip in by_table.clips] == [("flat", "swim"), ("run/a", "run")]


def test_clips_of_kinetics_may_be_folders_of_frames() -> None:
    rows = "label,youtube_id,time_start,time_end,split\nrun,x,1,11,train\nrun,y,1,11,train\n"
    catalog = catalog_of(
        {"root": pictures("any/x_000001_000011")},
        texts={"k.csv": rows},
        layout="kinetics",
        lists="k.csv",
        frames=True,
    )
    assert [clip.clip_id for clip in catalog.clips] == ["any/x_000001_000011"]
    assert catalog.notes == ("1 of 2 listed clips are not under root, for example run/y_000001_000011",)


def test_a_folder_that_stands_for_clips_of_two_classes_is_refused() -> None:
    texts = {"s.txt": "run/a train\nswim/a train\n"}
    with pytest.raises(CatalogError, match=r"s.txt, line 2: a has class 'swim' and, at s.txt, line 1, class 'run'"):
        catalog_of({"root": pictures("a")}, texts=texts, lists="s.txt", frames=True)


def test_videos_where_frames_were_wanted_are_refused() -> None:
    with pytest.raises(CatalogError, match=r"no image under root: .* found 1 other files; .* catalog.frames"):
        catalog_of({"root": ["run/a.mp4"]}, frames=True)


# -- flow images


@pytest.mark.parametrize(
    ("flow", "uris"),
    [
        (["u/run/a", "v/run/a"], ("flow/u/run/a", "flow/v/run/a")),
        (["u/a", "v/a"], ("flow/u/a", "flow/v/a")),
        (["run/a"], ("flow/run/a", "flow/run/a")),
        (["a"], ("flow/a", "flow/a")),
        (["train/run/a", "a"], ("flow/train/run/a", "flow/train/run/a")),
    ],
)
def test_flow_images_are_found_beside_each_other_and_apart_with_class_folders_and_without(
    flow: list[str], uris: tuple[str, str]
) -> None:
    (clip,) = catalog_of({"root": ["train/run/a.avi"], "flow": pictures(*flow)}, flow_images="flow").clips
    assert clip.flow_uris == uris and not clip.frames
    used = {uri.removeprefix("flow/") for uri in uris}
    assert clip.size_bytes == len("train/run/a.avi") + sum(map(len, pictures(*used)))


def test_flow_images_of_a_name_that_two_clips_share_are_taken_for_neither() -> None:
    listing = {"root": ["run/a.avi", "swim/a.avi", "swim/b.avi"], "flow": pictures("a", "b")}
    catalog = catalog_of(listing, flow_images="flow")
    assert [clip.flow_uris[0] for clip in catalog.clips] == ["flow/run/a", "flow/swim/a", "flow/b"]
    assert catalog.notes[-1] == "clips without flow images under flow: 2, for example run/a.avi"


def test_a_data_set_without_any_flow_image_is_refused() -> None:
    wanted = (
        r"wanted for example u/run/a/ and v/run/a/, or run/a/, found for example other/x/; check catalog.flow_images"
    )
    with pytest.raises(CatalogError, match=rf"no clip has flow images under flow: {wanted}"):
        catalog_of({"root": ["run/a.avi"], "flow": pictures("other/x")}, flow_images="flow")


# -- suffixes

CONTAINERS = {
    "mpegts": ".m2t .m2ts .mts .tod .trp .ts",
    "mpeg": ".m2p .mod .mpe .mpeg .mpg .vob .vro",
    "mov": ".3g2 .3gp .3gpp .f4v .m4v .mov .mp4 .qt",
    "avi": ".avi .divx .xvid",
    "matroska": ".mk3d .mkv .webm",
    "asf": ".asf .wmv",
    "ogg": ".ogm .ogv",
    "rm": ".rm .rmvb",
    "dhav": ".dav",
    "yuv4mpegpipe": ".y4m",
} | {name: f".{name}" for name in ("dv", "flv", "gif", "ivf", "mxf", "nut", "wtv")}


def test_every_suffix_is_that_of_a_container_that_pyav_opens() -> None:
    assert sorted(" ".join(CONTAINERS.values()).split()) == sorted(VIDEO_SUFFIXES)
    for name in CONTAINERS:
        assert ContainerFormat(name, "r").is_input, name


@pytest.mark.parametrize(
    ("name", "muxer", "codec"),
    [
        ("00000.MTS", "mpegts", "libx264"),
        ("00001.m2ts", "mpegts", "mpeg2video"),
        ("VTS_01_1.VOB", "vob", "mpeg2video"),
        ("clip.asf", "asf", "wmv2"),
        ("clip.Mxf", "mxf", "mpeg2video"),
        ("clip.f4v", "f4v", "libx264"),
        ("clip.rm", "rm", "rv10"),
    ],
)
def test_what_cameras_and_discs_write_is_a_video(tmp_path: Path, name: str, muxer: str, codec: str) -> None:
    path = tmp_path / "videos" / "run" / name
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuv422p" if muxer == "mxf" else "yuv420p"
        for number in range(12):
            picture = np.full((64, 96, 3), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (clip,) = catalog_on_disk(tmp_path / "videos").clips
    encoded = prepare_in_subprocess(
        Source(video=Path(clip.uri)), FlowContract(short_side_px=48), name=name, max_frames=100, prove=False
    )
    assert (clip.clip_id, encoded.num_frames, encoded.fps) == (f"run/{name}", 12, 25)


def test_where_no_video_is_the_suffixes_that_were_seen_are_named() -> None:
    paths = ["a/1.H264", "a/2.h264", "a/3.insv", "a/README", "a/._4.mp4", ".DS_Store", "a/Thumbs.db"]
    with pytest.raises(CatalogError, match=r"found 7 other files; suffixes seen: .h264 2, .insv 1, none 1, .db 1; "):
        catalog_of({"root": paths})
    notes = catalog_of({"root": [*paths, "a/x.mp4"]}).notes
    assert "example .DS_Store; suffixes seen: .h264 2, .insv 1, none 1, .db 1" in notes[0]


# -- what cannot be listed


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"1")
    return root


def catalog_on_disk(root: Path, **settings: object) -> Catalog:
    return read_catalog(
        CatalogConfig(root=str(root), **settings),
        list_files=storage.list_entries,
        read_bytes=storage.read_bytes,
    )


@pytest.mark.parametrize("layout", ["", "train/"])
@pytest.mark.parametrize("kind", ["a link to nothing", "its name is not UTF-8", "a link to a directory above it"])
def test_a_class_folder_that_cannot_be_entered_is_refused_by_name(tmp_path: Path, layout: str, kind: str) -> None:
    tree(tmp_path, f"{layout}run/a.mp4", f"{layout}swim/b.mp4")
    if kind == "its name is not UTF-8":
        tree(tmp_path, f"{layout}caf\udce9/c.mp4")
        name = r"caf\xe9"
    else:
        name = "walk"
        (tmp_path / layout / name).symlink_to("/nowhere" if kind == "a link to nothing" else tmp_path)
    wanted = re.escape(f"class folder {layout}{name} under {tmp_path} cannot be read ({kind}")
    with pytest.raises(CatalogError, match=wanted):
        catalog_on_disk(tmp_path)


@pytest.mark.parametrize("name", ["lost+found", "@eaDir", "__MACOSX", "$RECYCLE.BIN", ".snapshots"])
def test_directories_of_the_system_are_no_classes(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "run/a.mp4", "swim/b.mp4")
    (tmp_path / name).mkdir()
    assert catalog_on_disk(tmp_path).classes == ("run", "swim")
    tree(tmp_path, f"{name}/c.mp4")
    assert catalog_on_disk(tmp_path).classes == ("run", "swim")
    assert (
        catalog_on_disk(tmp_path)
        .notes[0]
        .startswith(f"files that are not videos, left out: 1, for example {name}/c.mp4")
    )


def test_a_split_folder_that_leads_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    tree(tmp_path, "train/run/a.mp4", "train/swim/b.mp4")
    (tmp_path / "test").symlink_to("/nowhere")
    with pytest.raises(CatalogError, match=r"split folder test under .* cannot be read \(a link to nothing\)"):
        catalog_on_disk(tmp_path)


def test_what_is_no_file_among_the_videos_is_named_in_the_notes(tmp_path: Path) -> None:
    tree(tmp_path, "run/a.mp4", "swim/b.mp4", "run/caf\udce9.mp4")
    (tmp_path / "run/gone.mp4").symlink_to("/nowhere/gone.mp4")
    (tmp_path / "swim/zero.mp4").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "swim/pipe.mp4")
    catalog = catalog_on_disk(tmp_path)
    assert [clip.clip_id for clip in catalog.clips] == ["run/a.mp4", "swim/b.mp4"]
    assert catalog.notes[0] == (
        f"4 entries under {tmp_path} cannot be used and are left out: run/caf\\xe9.mp4 (its name is not "
        "UTF-8: rename it), run/gone.mp4 (a link to nothing), swim/pipe.mp4 (a FIFO, socket or device) and 1 more"
    )


def test_what_the_records_of_shards_could_not_hold_is_left_out_by_name() -> None:
    deep = "/".join(["run", *["d" * 200] * 5, "a.mp4"])
    below = [(deep, 1), ("run/huge.mp4", 1 << 60), ("run/a.mp4", 1)]
    config = CatalogConfig(root="root", layout="table", lists="t.csv")

    def read(label: str) -> Catalog:
        table = f"uri,label\nrun/a.mp4,{label}\n".encode()
        return read_catalog(config, list_files=lambda _: below, read_bytes=lambda _: table)

    catalog = read("run")
    assert [clip.clip_id for clip in catalog.clips] == ["run/a.mp4"]
    assert catalog.notes[0].startswith("2 entries under root cannot be used and are left out: run/ddd")
    assert "run/huge.mp4 (its path is too long or its size is implausible)" in catalog.notes[0]
    with pytest.raises(CatalogError, match=r"t.csv, line 2: a class name may have at most 1000 characters, 'xxx"):
        read("x" * 2000)


def test_a_numbered_image_that_is_no_file_makes_its_clip_unusable(tmp_path: Path) -> None:
    tree(tmp_path, "img_1.jpg", "._img_2.jpg", "Thumbs.db")
    (tmp_path / "img_2.jpg").symlink_to("/nowhere/img_2.jpg")
    with pytest.raises(DecodeError, match=r"c: expected images in .*, img_2.jpg cannot be read \(a link to nothing\)"):
        images.read_frames(str(tmp_path), name="c")
    (tmp_path / "img_2.jpg").unlink()
    with (tmp_path / "img_2.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(AccessError, match=r"img_2.jpg: it may have at most \d+ bytes, it has 1099511627776"):
        images.read_frames(str(tmp_path), name="c")
