from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import pytest

from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, Layout, read_catalog
from twostream_ray.errors import CatalogError, ConfigError

CLASS_INDEX = "1 Archery\r\n2 HandstandPushups\r\n"
TRAIN = "Archery/v_Archery_g02_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g02_c01.avi 2\r\n"
TEST = "Archery/v_Archery_g01_c01.avi\r\nHandstandPushups/v_HandStandPushups_g01_c01.avi\r\n"


def catalog_of(
    paths: Iterable[str], *, texts: Mapping[str, str] | None = None, layout: str = "folder", lists: str | None = None
) -> Catalog:
    """Reads a data set that is at `videos`, with its lists, from plain dictionaries."""
    texts = texts or {}

    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        if directory == "videos":
            return [(path, len(path)) for path in paths]
        return [(Path(uri).name, len(text)) for uri, text in texts.items() if str(Path(uri).parent) == directory]

    config = CatalogConfig(layout=layout, root="videos", lists=lists)
    return read_catalog(config, list_files=list_files, read_bytes=lambda uri: texts[uri].encode())


def ucf101(paths: Iterable[str] | None = None, **texts: str) -> Catalog:
    named = {"classInd": CLASS_INDEX, "trainlist01": TRAIN, "testlist01": TEST} | texts
    if paths is None:
        paths = [line.split()[0] for line in (TRAIN + TEST).splitlines()]
    files = {f"lists/{name}.txt": text for name, text in named.items()}
    return catalog_of(paths, texts=files, layout="ucf101", lists="lists")


# -- folders


def test_split_folders_give_splits_and_labels_in_the_order_of_the_class_names() -> None:
    catalog = catalog_of(["train/zebra/b.mp4", "train/ant/a.mp4", "test/zebra/c.mp4"])
    assert catalog.classes == ("ant", "zebra")
    assert [(clip.clip_id, clip.label, clip.splits) for clip in catalog.clips] == [
        ("test/zebra/c.mp4", 1, ("test",)),
        ("train/ant/a.mp4", 0, ("train",)),
        ("train/zebra/b.mp4", 1, ("train",)),
    ]
    assert catalog.clips[0].uri == "videos/test/zebra/c.mp4"
    assert catalog.clips[0].size_bytes == len("test/zebra/c.mp4")


def test_valid_and_validation_folders_are_the_split_val() -> None:
    for name in ("val", "valid", "validation"):
        clips = catalog_of(["train/a/x.mp4", f"{name}/a/y.mp4"]).clips
        assert {clip.splits for clip in clips} == {("train",), ("val",)}


def test_class_folders_without_a_list_are_all_in_one_split_and_the_notes_say_so() -> None:
    catalog = catalog_of(["a/x.mp4", "b/y.mp4"])
    assert {clip.splits for clip in catalog.clips} == {("all",)}
    assert 'every clip is in the split "all"' in catalog.notes[0]


def test_a_split_list_serves_several_splits_and_names_with_spaces_and_signs() -> None:
    name = "climb/(HQ) Rock %20 & #1;+[x]'.avi"
    text = f"\ufeff{name} train1\r\n\r\n{name}\ttest2\nwalk/y.avi train1\nclimb/gone.avi train2\nwalk/y.avi train2"
    catalog = catalog_of([name, "walk/y.avi", "walk/z.avi"], texts={"s.txt": text}, lists="s.txt")
    assert [(clip.clip_id, clip.splits) for clip in catalog.clips] == [
        (name, ("train1", "test2")),
        ("walk/y.avi", ("train1", "train2")),
    ]
    assert catalog.notes == (
        "1 of 3 listed clips are not under videos, for example climb/gone.avi",
        "videos in no list, left out: 1, for example walk/z.avi",
    )


LISTED = {
    "folder": ("s.txt", {"s.txt": "a/x.avi train\na/gone.avi test\nb/y.avi train\n"}),
    "table": ("t.csv", {"t.csv": "uri,label,split\na/x.avi,a,train\na/gone.avi,a,test\nb/y.avi,b,train\n"}),
    "ucf101": (
        "lists",
        {
            "lists/classInd.txt": "1 a\n2 b\n",
            "lists/trainlist01.txt": "a/x.avi 1\nb/y.avi 2\n",
            "lists/testlist01.txt": "a/gone.avi\n",
        },
    ),
    "hmdb51": (
        "lists",
        {"lists/a_test_split1.txt": "x.avi 1\ngone.avi 2\nunused.avi 0\n", "lists/b_test_split1.txt": "y.avi 1\n"},
    ),
    "kinetics": (
        "k.csv",
        {
            "k.csv": "label,youtube_id,time_start,time_end,split\n"
            "a,x,0,10,train\na,gone,0,10,test\nb,y,0,10,train\n,unlabelled,0,10,test\n"
        },
    ),
}


@pytest.mark.parametrize("layout", LISTED)
def test_a_listed_clip_that_is_not_there_is_missing_with_its_class_and_splits_in_every_layout(layout: str) -> None:
    lists, texts = LISTED[layout]
    paths = ["a/x_000000_000010.avi", "b/y_000000_000010.avi"] if layout == "kinetics" else ["a/x.avi", "b/y.avi"]
    catalog = catalog_of(paths, texts=texts, layout=layout, lists=lists)
    assert [clip.clip_id for clip in catalog.clips] == paths
    (missing,) = catalog.missing
    assert missing.clip_id.startswith("a/gone") and missing.uri == f"videos/{missing.clip_id}"
    assert (missing.class_name, missing.label, missing.size_bytes) == ("a", 0, 0)
    assert missing.splits == (("test1",) if layout in ("ucf101", "hmdb51") else ("test",))


def test_files_that_are_no_videos_and_hidden_files_are_counted_not_read() -> None:
    catalog = catalog_of(["a/x.MP4", "a/readme.txt", "a/._x.mp4", ".trash/y.mp4"])
    assert [clip.clip_id for clip in catalog.clips] == ["a/x.MP4"]
    assert catalog.notes[0] == "files that are not videos, left out: 3, for example .trash/y.mp4"


@pytest.mark.parametrize("empty", ["train/b/", "train/b/notes.txt", "train/b/._x.mp4", "train/b/.DS_Store"])
def test_a_folder_without_a_video_is_no_class_as_in_a_bucket_and_the_notes_say_so(empty: str) -> None:
    for prefix in ("train/", ""):
        catalog = catalog_of([f"{prefix}a/x.mp4", f"{prefix}{empty.removeprefix('train/')}"])
        assert catalog.classes == ("a",)
        said = f"1 class folders have no video and are not classes, for example {prefix}b"
        assert said in catalog.notes


def test_hidden_folders_are_no_classes() -> None:
    hidden = [".DS_Store", ".cache/x.mp4", "__MACOSX/a/._x.mp4", "a/.thumbs/x.mp4", ".git/hooks/.x"]
    assert catalog_of(["a/x.mp4", *hidden]).classes == ("a",)


def test_a_class_that_is_only_tested_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"class 'b' \(videos\) has no clip in split train"):
        catalog_of(["train/a/x.mp4", "test/a/y.mp4", "test/b/z.mp4"])


def test_an_empty_root_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"no video under videos: wanted files ending in .*\.mp4.*, found 1 other"):
        catalog_of(["readme.txt"])


def test_a_video_outside_the_layout_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"x\.mp4 under videos does not fit class/video"):
        catalog_of(["x.mp4", "a/y.mp4"])
    with pytest.raises(
        CatalogError, match=r"extra/a/z\.mp4 under videos .* next to the splits train only split folders"
    ):
        catalog_of(["train/a/x.mp4", "extra/a/z.mp4"])
    with pytest.raises(CatalogError, match=r"train/x\.mp4 under videos does not fit split/class/video"):
        catalog_of(["train/x.mp4"])


def read_list(text: str) -> Catalog:
    return catalog_of(["a/x.mp4", "a/y.mp4", "b/z.mp4"], texts={"splits.txt": text}, lists="splits.txt")


@pytest.mark.parametrize("line", ["a/y.mp4", "a/y.mp4 holdout", "y.mp4 train", "train/a/y.mp4 train", "a/y train"])
def test_a_malformed_line_of_a_split_list_is_named_with_its_number(line: str) -> None:
    with pytest.raises(CatalogError, match=rf"splits.txt, line 2: wanted `class/video split`.*got '{line}'"):
        read_list(f"a/x.mp4 train\n{line}\n")


def test_a_clip_in_train_and_test_is_refused_with_both_lines() -> None:
    with pytest.raises(CatalogError, match=r"line 3: a/x\.mp4 is in test and, at splits\.txt, line 1, in train"):
        read_list("a/x.mp4 train\nb/z.mp4 train\na/x.mp4 test\n")


def test_a_clip_listed_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(CatalogError, match=r"line 2: a/x\.mp4 is in split train twice, first at splits\.txt, line 1"):
        read_list("a/x.mp4 train\na/x.mp4 train\n")


KINETICS = "label,youtube_id,time_start,time_end,split\n"
ID = "0wR5jVB-WP"
ABSENT = {
    "folder": {"lists/s.txt": "a/x.avi train1\nb/gone.avi train1\n"},
    "ucf101": {
        "lists/classInd.txt": "1 a\n2 b\n",
        "lists/trainlist01.txt": "a/x.avi 1\nb/gone.avi 2\n",
        "lists/testlist01.txt": "a/y.avi\n",
    },
    "hmdb51": {"lists/a_test_split1.txt": "x.avi 1\n", "lists/b_test_split1.txt": "gone.avi 1\n"},
    "kinetics": {"lists/k.csv": f"{KINETICS}a,{ID}1,0,1,train1\nb,{ID}2,0,1,train1\n"},
    "table": {"lists/t.csv": "uri,label,split\na/x.avi,a,train1\nb/gone.avi,b,train1\n"},
}
"""Lists of each layout with a class a, and a class b none of whose clips is there."""


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_listed_class_without_a_clip_keeps_its_number_and_is_said_in_every_layout(layout: str) -> None:
    texts = ABSENT[layout]
    lists = "lists" if layout in ("ucf101", "hmdb51") else min(texts)
    catalog = catalog_of(["a/x.avi", f"a/{ID}1_000000_000001.avi"], texts=texts, layout=layout, lists=lists)
    assert catalog.classes == ("a", "b")
    assert {(clip.class_name, clip.label) for clip in catalog.clips} == {("a", 0)}
    said = [note for note in catalog.notes if "have no clip" in note]
    assert len(said) == 1 and said[0].startswith("1 of 2 classes have no clip and keep their labels, for example b (")


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_class_that_no_train_split_lists_is_refused_in_every_layout(layout: str) -> None:
    texts = {name: text.replace("b/gone.avi 2\n", "") for name, text in ABSENT[layout].items()}
    for name, text in texts.items():
        if layout == "hmdb51":
            texts[name] = text.replace("gone.avi 1", "gone.avi 2")
        elif layout != "ucf101":
            before, _, after = text.rpartition("train1")
            texts[name] = f"{before}test1{after}"
    lists = "lists" if layout in ("ucf101", "hmdb51") else min(texts)
    with pytest.raises(CatalogError, match=r"class 'b' \(lists/.*\) has no clip in split train1"):
        catalog_of(["a/x.avi", f"a/{ID}1_000000_000001.avi"], texts=texts, layout=layout, lists=lists)


# -- UCF101


def test_the_label_comes_from_the_directory_not_from_the_file_name() -> None:
    clip = next(clip for clip in ucf101().clips if "HandStand" in clip.clip_id and "g02" in clip.clip_id)
    assert (clip.class_name, clip.label, clip.splits) == ("HandstandPushups", 1, ("train1",))


def test_lists_with_another_spelling_than_the_archive_find_its_files() -> None:
    respelt = {"trainlist01": TRAIN.replace("HandStand", "Handstand"), "testlist01": TEST}
    catalog = ucf101(**respelt)
    assert len(catalog.clips) == 4
    assert {clip.clip_id for clip in catalog.clips} == {clip.clip_id for clip in ucf101().clips}
    assert catalog.notes == ("lines that differ from the file's name in case: 1; the file's name is used",)


def test_clips_that_are_not_there_are_counted() -> None:
    catalog = ucf101(["Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g30_c01.avi"])
    assert [clip.splits for clip in catalog.clips] == [("test1",)]
    assert catalog.classes == ("Archery", "HandstandPushups")
    assert catalog.notes == (
        "3 of 4 listed clips are not under videos, for example Archery/v_Archery_g02_c01.avi",
        "videos in no list, left out: 1, for example Archery/v_Archery_g30_c01.avi",
        "1 of 2 classes have no clip and keep their labels, for example HandstandPushups (lists/classInd.txt, line 2)",
    )


def test_a_root_one_level_too_high_is_refused_with_what_is_there() -> None:
    with pytest.raises(CatalogError, match=r"wanted for example Archery/v_.*, found for example UCF-101/Archery/v_"):
        ucf101(["UCF-101/Archery/v_Archery_g01_c01.avi"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"trainlist01": TRAIN + "Archery/v_Archery_g01_c01.avi 1\n"}, r"list01.txt, line 1: .* is in test1 and, at"),
        (
            {"trainlist01": TRAIN + "Archery/v_Archery_g03_c01.avi\n"},
            r"trainlist01.txt, line 3: wanted `class/video.avi",
        ),
        (
            {"trainlist01": TRAIN + "Archery/v_Archery_g03_c01.avi 2\n"},
            r"trainlist01.txt, line 3: class 'Archery' is number 1 in",
        ),
        ({"testlist01": TEST + "Diving/v_Diving_g01_c01.avi\n"}, r"list01.txt, line 3: class 'Diving' is not in lists"),
        ({"testlist01": TEST + "Archery/v_Archery_g03_c01.avi 1\n"}, r"list01.txt, line 3: wanted `class/video.avi`"),
        ({"testlist01": TEST + TEST}, r"list01.txt, line 3: .* is in split test1 twice, first at"),
        ({"classInd": CLASS_INDEX + "4 Diving\n"}, r"classInd.txt, line 3: wanted `3 class name` .* got '4 Diving'"),
        ({"classInd": CLASS_INDEX + "3 Archery\n"}, r"classInd.txt, line 3: wanted `3 class name` with a new name"),
        (
            {"classInd": CLASS_INDEX + "3 Diving\n"},
            r"class 'Diving' \(lists/classInd.txt, line 3\) has no clip in split",
        ),
        ({"classInd": ""}, r"lists/classInd.txt is empty: wanted lines `number class name`"),
        ({"trainlist02": TRAIN}, r"lists has no testlist02.txt: wanted classInd.txt and, per split"),
    ],
)
def test_a_wrong_list_is_reported_with_file_and_line(texts: dict[str, str], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        ucf101(**texts)


def test_a_directory_without_lists_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"lists has no trainlist01\.txt: .* found readme\.txt"):
        catalog_of(["a/x.avi"], texts={"lists/readme.txt": ""}, layout="ucf101", lists="lists")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layout": "ucf-101", "root": "videos"},
            "layout must be one of folder, ucf101, hmdb51, kinetics, table, got 'ucf-101'",
        ),
        ({"layout": "ucf101", "root": "videos"}, "lists must name the directory with classInd.txt"),
        ({"root": " "}, "root must name the directory"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CatalogConfig(**settings)


# -- the official lists and real clips


@pytest.mark.slow
@pytest.mark.real
def test_official_lists_give_13320_clips_with_the_published_counts(real: Path) -> None:
    lists = real / "lists" / "ucf101_official_crlf"
    listed = {line.split()[0] for path in lists.glob("t*list01.txt") for line in path.read_text().splitlines()}

    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        return [(path.name, 0) for path in lists.iterdir()] if directory == str(lists) else [(p, 1) for p in listed]

    config = CatalogConfig(layout="ucf101", root="s3://bucket/ucf101/", lists=str(lists))
    catalog = read_catalog(config, list_files=list_files, read_bytes=lambda uri: Path(uri).read_bytes())
    counts = [sum(split in clip.splits for clip in catalog.clips) for split in ("train1", "train2", "train3")]
    assert counts == [9537, 9586, 9624]
    counts = [sum(split in clip.splits for clip in catalog.clips) for split in ("test1", "test2", "test3")]
    assert counts == [3783, 3734, 3696]
    assert (len(catalog.clips), len(catalog.classes), catalog.notes) == (13320, 101, ())
    assert catalog.clips[0].uri == "s3://bucket/ucf101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    assert {clip.label for clip in catalog.clips if "v_HandStandPushups" in clip.clip_id} == {36}


@pytest.mark.slow
@pytest.mark.real
def test_29_real_clips_get_the_labels_and_splits_of_the_official_lists(real: Path) -> None:
    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        return [
            (path.relative_to(directory).as_posix(), path.stat().st_size)
            for path in Path(directory).rglob("*")
            if path.is_file()
        ]

    config = CatalogConfig(
        layout="ucf101", root=str(real / "ucf101"), lists=str(real / "lists" / "ucf101_official_crlf")
    )
    catalog = read_catalog(config, list_files=list_files, read_bytes=lambda uri: Path(uri).read_bytes())
    assert len(catalog.clips) == 29
    assert catalog.notes[0].startswith("13291 of 13320 listed clips are not under ")
    assert all(Path(clip.uri).stat().st_size == clip.size_bytes for clip in catalog.clips)
    javelin = {Path(clip.uri).stem: clip for clip in catalog.clips if clip.class_name == "JavelinThrow"}
    assert javelin["v_JavelinThrow_g21_c03"].splits == ("train1", "train2", "test3")
    assert javelin["v_JavelinThrow_g05_c05"].splits == ("test1", "train2", "train3")
    assert javelin["v_JavelinThrow_g05_c05"].label == 44
