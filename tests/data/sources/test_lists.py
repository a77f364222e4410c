import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, read_catalog, read_catalogs
from twostream_ray.errors import CatalogError, ConfigError


def catalog_of(layout: str, paths: Iterable[str], *, lists: str, files: Mapping[str, str | bytes]) -> Catalog:
    """Reads a data set that is at `videos`, with its lists, from plain dictionaries."""

    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        if directory == "videos":
            return [(path, len(path)) for path in paths]
        return [(Path(uri).name, len(content)) for uri, content in files.items() if str(Path(uri).parent) == directory]

    def read_bytes(uri: str) -> bytes:
        content = files[uri]
        return content if isinstance(content, bytes) else content.encode()

    config = CatalogConfig(layout=layout, root="videos", lists=lists)
    return read_catalog(config, list_files=list_files, read_bytes=read_bytes)


# -- HMDB51


def hmdb51(**change: str) -> Catalog:
    files = {
        "climb_test_split1": "(HQ)_a%20#1;+[x]!&'.avi 1 \nb.avi 2 \nunused.avi 0 \n",
        "climb_test_split2": "(HQ)_a%20#1;+[x]!&'.avi 2 \nb.avi 1 \nunused.avi 0 \n",
        "climb_stairs_test_split1": "c.avi 1 \nd.avi 2 \n",
        "climb_stairs_test_split2": "c.avi 1 \nd.avi 0 \n",
    } | change
    paths = ["climb/(HQ)_a%20#1;+[x]!&'.avi", "climb/b.avi", "climb/unused.avi", "climb_stairs/c.avi"]
    named = {f"lists/{name}.txt": text for name, text in files.items() if text}
    return catalog_of("hmdb51", [*paths, "climb_stairs/d.avi"], lists="lists", files=named)


def test_the_class_of_hmdb51_is_in_the_lists_file_name_and_the_code_says_train_test_or_neither() -> None:
    catalog = hmdb51()
    assert catalog.classes == ("climb", "climb_stairs")
    assert [(clip.clip_id, clip.label, clip.splits) for clip in catalog.clips] == [
        ("climb/(HQ)_a%20#1;+[x]!&'.avi", 0, ("train1", "test2")),
        ("climb/b.avi", 0, ("test1", "train2")),
        ("climb_stairs/c.avi", 1, ("train1", "train2")),
        ("climb_stairs/d.avi", 1, ("test1",)),
    ]
    assert catalog.notes == ("videos in no list, left out: 1, for example climb/unused.avi",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"climb_test_split1": "b.avi 3"}, r"lists/climb_test_split1.txt, line 1: .* code 0, 1 or 2, got 'b.avi 3'"),
        ({"climb_test_split1": "b.avi"}, r"lists/climb_test_split1.txt, line 1: wanted `video.avi code`"),
        ({"climb_test_split2": ""}, "lists has no climb_test_split2.txt"),
        ({"climb_test_split1": "b.avi 1\nb.avi 2"}, r"line 2: climb/b.avi is in test1 and, at .*line 1, in train1"),
        (
            {"climb_test_split1": "b.avi 2"},
            r"class 'climb' \(lists/climb_test_split\*.txt\) has no clip in split train1",
        ),
    ],
)
def test_what_is_wrong_in_a_list_of_hmdb51_is_named_by_file_and_line(change: dict[str, str], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        hmdb51(**change)


@pytest.mark.real
def test_the_official_lists_give_the_official_counts(real: Path) -> None:
    lists = real / "lists/hmdb51_splits"
    names = {
        f"{path.name.rsplit('_test_split')[0]}/{line.rsplit(maxsplit=1)[0]}"
        for path in lists.iterdir()
        for line in path.read_text().splitlines()
    }

    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        return ((name, 1) for name in (names if directory == "videos" else (path.name for path in lists.iterdir())))

    config = CatalogConfig(layout="hmdb51", root="videos", lists=str(lists))
    catalog = read_catalog(config, list_files=list_files, read_bytes=lambda uri: Path(uri).read_bytes())
    assert len(catalog.classes) == 51 and len(names) == 6766
    assert Counter(split for clip in catalog.clips for split in clip.splits) == {
        f"{role}{number}": count for number in (1, 2, 3) for role, count in (("train", 3570), ("test", 1530))
    }
    signs = set("%&#;+!()[]'\"")
    assert sum(bool(set(name.partition("/")[2]) & signs) for name in names) == 533
    assert all(clip.clip_id.startswith(f"{clip.class_name}/") for clip in catalog.clips)


# -- Kinetics

KINETICS = "label,youtube_id,time_start,time_end,split\n"


def kinetics(rows: str, paths: Iterable[str]) -> Catalog:
    return catalog_of("kinetics", paths, lists="k.csv", files={"k.csv": KINETICS + rows})


def test_clips_of_kinetics_are_found_by_id_and_seconds_wherever_they_lie() -> None:
    rows = '"flipping, pancake",ab-_1,10,20,train\nrobot dancing,zz,0,10,validate\nrobot dancing,yy,5,15,train\n'
    catalog = kinetics(rows + ",qq,1,11,test\n", ["any/where/ab-_1_000010_000020.mp4", "zz_000000_000010.webm"])
    assert catalog.classes == ("flipping, pancake", "robot dancing")
    assert [(clip.clip_id, clip.label, clip.splits) for clip in catalog.clips] == [
        ("any/where/ab-_1_000010_000020.mp4", 0, ("train",)),
        ("zz_000000_000010.webm", 1, ("val",)),
    ]
    assert catalog.notes == (
        "1 listed clips have no label and are left out",
        "1 of 3 listed clips are not under videos, for example robot dancing/yy_000005_000015.mp4",
    )


def test_of_several_videos_of_a_clip_of_kinetics_the_one_of_its_class_is_taken_and_none_by_chance() -> None:
    name, rows = "x_000001_000002", "a,x,1,2,train\n"
    (clip,) = kinetics(rows, [f"a/{name}.mp4", f"b/{name}.mp4", f"{name}.webm"]).clips
    assert clip.clip_id == f"a/{name}.mp4"
    for paths in (["p/x.mp4", "q/x.mp4"], ["a/x.mp4", "a/x.webm"]):
        with pytest.raises(CatalogError, match=rf"k.csv, line 2: one video {name} of class a was wanted, 2 have that"):
            kinetics(rows, [path.replace("x.", f"{name}.") for path in paths])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,split\na,train\n", "k.csv: wanted the columns label, youtube_id, .* youtube_id is missing"),
        (KINETICS + "a,x,now,20,train\n", "k.csv, line 2: wanted seconds in time_start and time_end, got 'now'"),
        (KINETICS + "a,x,1,inf,train\n", "k.csv, line 2: wanted seconds in .* and 'inf'"),
        (KINETICS + "a,x,1,2,train\na,x,1,2,val\n", r"k.csv, line 3: x_\S+ is in val and, at k.csv, line 2, in train"),
        (KINETICS + "a,x,1,2,train\nb,y,1,2,val\n", r"class 'b' \(k.csv, line 3\) has no clip in split train"),
        (KINETICS + "a,x,1,2,dev\n", "k.csv, line 2: wanted a split such as .*, got 'dev'"),
        (KINETICS + "a,x,1,2,train,more\n", "k.csv, line 2: wanted 5 values, got more"),
    ],
)
def test_what_is_wrong_in_a_list_of_kinetics_is_named_by_file_and_line(text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog_of("kinetics", ["x_000001_000002.mp4"], lists="k.csv", files={"k.csv": text})


def test_lists_in_a_folder_are_found_by_their_suffix_in_any_case_and_hidden_ones_are_not_read() -> None:
    rows = KINETICS.upper().replace("LABEL,", "Label ,") + "a,x,1,2,Train\n\n"
    files = {"k/A.CSV": rows, "k/._A.CSV": "no list", "k/b.tsv": (KINETICS + "a,y,1,2,test\n").replace(",", "\t")}
    catalog = catalog_of("kinetics", ["x_000001_000002.mp4", "y_000001_000002.mp4"], lists="k", files=files)
    assert [clip.splits for clip in catalog.clips] == [("train",), ("test",)]
    lists = {"lists/._climb_test_split1.txt": "", "lists/climb_test_split1.txt": "./b.avi 1\r./c.avi 2\r"}
    climbing = catalog_of("hmdb51", ["climb/b.avi", "climb/c.avi"], lists="lists", files=lists)
    assert [clip.splits for clip in climbing.clips] == [("train1",), ("test1",)]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_a_split_list_may_be_written_as_other_systems_do(coding: str) -> None:
    text = "./a/x 1.mp4 Train\r\na\\y.mp4 TEST\r\na//z.mp4 training1\r\n"
    paths = ["a/x 1.mp4", "a/y.mp4", "a/z.mp4"]
    catalog = catalog_of("folder", paths, lists="s.txt", files={"s.txt": text.encode(coding)})
    assert [(clip.clip_id, clip.class_name, clip.splits) for clip in catalog.clips] == [
        ("a/x 1.mp4", "a", ("train",)),
        ("a/y.mp4", "a", ("test",)),
        ("a/z.mp4", "a", ("train1",)),
    ]


# -- tables

TABLE = {"uri": ["b/1.mp4", "videos/2.mp4", "3.mp4"], "label": ["wave", "jump", "wave"]}


def as_parquet(columns: dict[str, list[object]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def test_csv_and_parquet_tables_give_the_same_catalog() -> None:
    splits = ["train1;test2", "train1", "train2 test1"]
    rows = zip(TABLE["uri"], TABLE["label"], splits, strict=True)
    text = "\ufeffuri,label,split\r\n" + "".join(f"{uri},{label},{split}\r\n" for uri, label, split in rows)
    lists = [split.replace(";", " ").split() for split in splits]
    paths = ["b/1.mp4", "2.mp4", "3.mp4"]
    files: dict[str, str | bytes] = {
        "t.csv": text.replace("jump", "wave"),
        "t.parquet": as_parquet({**TABLE, "label": ["wave"] * 3, "split": lists}),  # type: ignore[dict-item]
    }
    read = [catalog_of("table", paths, lists=name, files=files) for name in files]
    assert read[0] == read[1]
    assert [(clip.clip_id, clip.splits) for clip in read[0].clips] == [
        ("2.mp4", ("train1",)),
        ("3.mp4", ("test1", "train2")),
        ("b/1.mp4", ("train1", "test2")),
    ]


def test_a_table_without_splits_is_all_one_split() -> None:
    catalog = catalog_of(
        "table",
        ["b/1.mp4", "2.mp4", "3.mp4"],
        lists="t.parquet",
        files={"t.parquet": as_parquet(dict(TABLE))},
    )
    assert {clip.splits for clip in catalog.clips} == {("all",)}
    assert {clip.clip_id: clip.class_name for clip in catalog.clips} == {
        "b/1.mp4": "wave",
        "2.mp4": "jump",
        "3.mp4": "wave",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri,label\ns3://other/x.mp4,a\n", r"t.csv, line 2: .* below catalog.root \(videos\), got uri 's3://other"),
        ("uri,label\nx.mp4,\n", "t.csv, line 2: wanted a label"),
        (
            "uri,label,split\nx.mp4,a,train\nx.mp4,a,test\n",
            "line 3: x.mp4 is in test and, at t.csv, line 2, in train",
        ),
        (
            "uri,label,split\nx.mp4,a,test1\nx.mp4,b,test2\n",
            "line 3: x.mp4 has class 'b' and, at t.csv, line 2, class 'a'",
        ),
        ("uri,label,split\nx.mp4,a,train\ny.mp4,b,test\n", r"class 'b' \(t.csv, line 3\) has no clip in split train"),
        ("uri,label,split\nx.mp4,a,dev\n", "t.csv, line 2: wanted a split such as .*, got 'dev'"),
        ('uri,label\nx.mp4,"' + "a" * 200_000, "t.csv, line 2: malformed CSV"),
        ("uri,label\n", "t.csv is empty"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_file_and_line(text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog_of("table", ["x.mp4"], lists="t.csv", files={"t.csv": text})


def test_a_file_that_is_no_parquet_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"t.parquet: not a readable Parquet file"):
        catalog_of("table", ["x.mp4"], lists="t.parquet", files={"t.parquet": b"no parquet"})


# -- several data sets


def test_data_sets_together_keep_their_clips_apart_and_their_classes_one_after_the_other() -> None:
    def list_files(directory: str) -> Iterable[tuple[str, int]]:
        return {"u": [("train/run/a.mp4", 1), ("train/swim/b.mp4", 1)], "h": [("train/run/a.mp4", 2)]}[directory]

    configs = [CatalogConfig(root="u", name="ucf"), CatalogConfig(root="h", name="hmdb")]
    listed = replace(configs[1], lists="s.txt", root="h/train")
    files = {"h/train": [("run/a.mp4", 2)]}
    (missing,) = read_catalogs(
        [configs[0], listed],
        list_files=lambda root: files.get(root) or list_files(root),
        read_bytes=lambda _: b"run/a.mp4 train\nrun/gone.mp4 test\n",
    ).missing
    assert (missing.clip_id, missing.class_name, missing.label) == ("hmdb/run/gone.mp4", "hmdb/run", 2)

    catalog = read_catalogs(configs, list_files=list_files, read_bytes=lambda _: b"")
    assert catalog.classes == ("ucf/run", "ucf/swim", "hmdb/run")
    assert catalog.head_classes == (2, 1)
    assert [(clip.clip_id, clip.label, clip.uri) for clip in catalog.clips] == [
        ("hmdb/train/run/a.mp4", 2, "h/train/run/a.mp4"),
        ("ucf/train/run/a.mp4", 0, "u/train/run/a.mp4"),
        ("ucf/train/swim/b.mp4", 1, "u/train/swim/b.mp4"),
    ]
    with pytest.raises(ConfigError, match="several data sets need distinct catalog names, got 'ucf', ''"):
        read_catalogs([configs[0], CatalogConfig(root="h")], list_files=list_files, read_bytes=lambda _: b"")


# -- numbers of splits and classes


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 10, "٢", "²"])
def test_numbers_beyond_all_bounds_and_of_other_scripts_are_one_line(number: str) -> None:
    line = f"a/x.avi {number}"
    files = {"l/classInd.txt": "1 a\n", "l/trainlist01.txt": line, "l/testlist01.txt": ""}
    with pytest.raises(CatalogError, match=r"trainlist01.txt, line 1: wanted `class/video.avi number`"):
        catalog_of("ucf101", ["a/x.avi"], lists="l", files=files)
    with pytest.raises(CatalogError, match=r"l.txt, line 1: wanted `class/video split`"):
        catalog_of("folder", ["a/x.avi"], lists="l.txt", files={"l.txt": f"a/x.avi train{number}"})


def test_a_second_list_for_one_split_of_hmdb51_takes_no_place() -> None:
    for number in ("01", "001", "١"):
        assert hmdb51(**{f"climb_test_split{number}": "b.avi 1"}).clips == hmdb51().clips


@pytest.mark.parametrize(("one", "other"), [("train1", "test01"), ("Train002", "test2"), ("train0", "val00")])
def test_a_clip_has_one_role_in_a_split_however_its_number_is_written(one: str, other: str) -> None:
    text = f"a/x.avi {one}\na/y.avi {one}\na/x.avi {other}\n"
    with pytest.raises(CatalogError, match=r"line 3: a/x.avi is in .* a clip may have one role in a split"):
        catalog_of("folder", ["a/x.avi", "a/y.avi"], lists="l.txt", files={"l.txt": text})
