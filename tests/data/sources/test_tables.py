import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twostream_ray import storage
from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, read_catalog
from twostream_ray.errors import CatalogError

CLIPS = ("a/a1.mp4", "a/a2.mp4", "b/b1.mp4")
SPLITS = {"a/a1.mp4": ("train",), "a/a2.mp4": ("test",), "b/b1.mp4": ("train",)}


def catalog_of(folder: Path, table: str | bytes, *, clips: Sequence[str] = CLIPS, name: str = "t.csv") -> Catalog:
    """Reads a table from a disk on which the clips are; ROOT in the table is their root."""
    root = folder / "videos"
    for clip in clips:
        (root / clip).parent.mkdir(parents=True, exist_ok=True)
        (root / clip).write_bytes(b"1")
    if isinstance(table, str):
        table = table.replace("ROOT", str(root)).encode()
    (folder / name).write_bytes(table)
    config = CatalogConfig(layout="table", root=str(root), lists=str(folder / name))
    return read_catalog(config, list_files=storage.list_entries, read_bytes=storage.read_bytes)


def splits(catalog: Catalog) -> dict[str, tuple[str, ...]]:
    return {clip.clip_id: clip.splits for clip in catalog.clips}


def as_parquet(names: Sequence[str], columns: Sequence[object]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=list(names)), file)
    return file.getvalue()


PLAIN = "uri,label,split\na/a1.mp4,a,train\na/a2.mp4,a,test\nb/b1.mp4,b,train\n"
WITHOUT_A_NOTE = {
    "as it should be": PLAIN,
    "titles in capitals": PLAIN.replace("uri,label,split", "URI,Label,Split"),
    "subset": PLAIN.replace("split", "subset"),
    "a set beside the split": "uri,label,split,set\na/a1.mp4,a,train,x\na/a2.mp4,a,test,\nb/b1.mp4,b,train,y\n",
    "splits in capitals": PLAIN.replace("train", "Train").replace("test", "TESTING"),
    "row numbers of pandas": ",uri,label,split\n0,a/a1.mp4,a,train\n1,a/a2.mp4,a,test\n2,b/b1.mp4,b,train\n",
    "row numbers read and written again": "Unnamed: 0,uri,label,split\n0,a/a1.mp4,a,train\n1,a/a2.mp4,a,test\n"
    "2,b/b1.mp4,b,train\n",
    "blanks behind commas": 'uri, label, split\na/a1.mp4, a, train\n"a/a2.mp4", "a", "test"\nb/b1.mp4 , b , train \n',
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "bars": PLAIN.replace(",", "|"),
    "quoted": '"uri","label","split"\n"a/a1.mp4","a","train"\n"a/a2.mp4","a","test"\n"b/b1.mp4","b","train"\n',
    "quoted with tabs": '"uri"\t"label"\t"split"\n"a/a1.mp4"\t"a"\t"train"\n"a/a2.mp4"\ta\ttest\nb/b1.mp4\tb\ttrain\n',
    "CRLF and a byte order mark": "\ufeff" + PLAIN.replace("\n", "\r\n"),
    "a line for Excel": "sep=,\n" + PLAIN,
    "a line for Excel and semicolons": "\ufeffsep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
    "a quoted line for Excel and tabs": '"sep=\t"\n' + PLAIN.replace(",", "\t"),
    "CR alone": PLAIN.replace("\n", "\r"),
    "empty rows and cells of a spreadsheet": "\n" + PLAIN.replace("\n", ",,\n") + ",,,,\n\n",
    "./": PLAIN.replace("a/a", "./a/a").replace("b/b", "./b//b"),
    "whole paths": PLAIN.replace("a/a", "ROOT/a/a").replace("b/b", "ROOT//b/./b"),
    "file URIs": PLAIN.replace("a/a", "file://ROOT/a/a").replace("b/b", "FILE://localhostROOT/b/b"),
    "file URIs with one slash": PLAIN.replace("a/a", "file:ROOT/a/a"),
    "a root by another name": PLAIN.replace("a/a", "ROOT/../videos/a/a"),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=kind) for kind, text in WITHOUT_A_NOTE.items()])
def test_a_table_means_the_same_however_it_was_exported(tmp_path: Path, text: str) -> None:
    catalog = catalog_of(tmp_path, text)
    assert splits(catalog) == SPLITS
    assert (catalog.classes, catalog.notes) == (("a", "b"), ())


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_text_of_two_bytes_a_letter_is_read_by_its_mark(tmp_path: Path, coding: str) -> None:
    mark = "" if coding != "utf-16-be" else "\ufeff"
    assert splits(catalog_of(tmp_path, (mark + PLAIN).encode(coding), name="T.CSV")) == SPLITS
    with pytest.raises(CatalogError, match=r"t.csv: expected UTF-8 text, found zero bytes: save it as UTF-8"):
        catalog_of(tmp_path, PLAIN.encode("utf-16-le"))


NAMES = ("a/100%25.mp4", "a/with space.mp4", f"b/{unicodedata.normalize('NFD', 'café')}.mp4", "b/#1?.mp4", "a/%zz.mp4")


@pytest.mark.parametrize(
    ("uris", "notes"),
    [
        ([f"file://ROOT/{name}" for name in ("a/100%2525.mp4", "a/with%20space.mp4", "b/cafe%CC%81.mp4")], 0),
        (["file://ROOT/b/caf%C3%A9.mp4"], 1),
        (["b/caf\u00e9.mp4"], 1),
        (["a/with%20space.mp4", "file://ROOT/b/%231%3F.mp4"], 1),
        (["file://ROOT/a/100%25.mp4", "file://ROOT/b/#1?.mp4", "file://ROOT/a/%zz.mp4"], 1),
        (["a/100%25.mp4", "b/#1?.mp4", "a/%zz.mp4"], 0),
        (["a\\with space.mp4", "b\\#1?.mp4"], 1),
    ],
)
def test_a_name_is_found_however_it_is_written_and_the_notes_say_so(
    tmp_path: Path, uris: Sequence[str], notes: int
) -> None:
    catalog = catalog_of(tmp_path, "uri,label,split\n" + "".join(f"{uri},x,train\n" for uri in uris), clips=NAMES)
    assert len(catalog.clips) == len(uris)
    assert sum("lines that differ from the file's name" in note for note in catalog.notes) == notes
    assert not any("are not under" in note for note in catalog.notes)


def test_a_table_may_name_its_root_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("videos")
    (tmp_path / "blob").write_bytes(b"1")
    (tmp_path / "videos/a").mkdir(parents=True)
    (tmp_path / "videos/a/linked.mp4").symlink_to(tmp_path / "blob")
    text = PLAIN.replace("a/a", f"{tmp_path}/link/a/a") + f"{tmp_path}/link/a/linked.mp4,a,test\n"
    assert splits(catalog_of(tmp_path, text)) == {**SPLITS, "a/linked.mp4": ("test",)}


def test_buckets_go_by_the_names_of_other_tools_too() -> None:
    text = "uri,label,split\ns3://bucket/v/a/x y%20.mp4,a,train\ns3a://bucket/v/b/y.mp4,b,train\n"
    catalog = read_catalog(
        CatalogConfig(layout="table", root="s3://bucket/v", lists="t.csv"),
        list_files=lambda _: [("a/x y%20.mp4", 1), ("b/y.mp4", 1)],
        read_bytes=lambda _: text.encode(),
    )
    assert [clip.uri for clip in catalog.clips] == ["s3://bucket/v/a/x y%20.mp4", "s3://bucket/v/b/y.mp4"]


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (PLAIN.replace("split", "spilt"), "no column split or splits or subset or set or partition, "),
        ("uri,label,split\na/a1.mp4,a,\na/a2.mp4,a,nan\nb/b1.mp4,b\n", "its column of splits is empty, "),
    ],
)
def test_a_table_that_says_no_split_is_all_one_split_and_the_notes_say_so(
    tmp_path: Path, table: str, note: str
) -> None:
    catalog = catalog_of(tmp_path, table)
    assert set(splits(catalog).values()) == {("all",)}
    assert f'{note}every clip is in the split "all"' in catalog.notes[0]
    assert ("ignored columns: spilt" in catalog.notes[0]) == ("spilt" in table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PLAIN.replace("a,test", "a,"), "t.csv, line 3: wanted a split such as .*, got ''"),
        (PLAIN.replace("a,test", "a,NaN"), "t.csv, line 3: wanted a split such as .*, got ''"),
        (PLAIN.replace("a/a2.mp4,a,test", "a/a2.mp4,a"), "t.csv, line 3: wanted a split such as .*, got ''"),
        (PLAIN.replace("a2.mp4,a", "a2.mp4,nan"), "t.csv, line 3: wanted a label and .* label ''"),
        (PLAIN.replace("label,split", "label,label"), "t.csv: the column label occurs 2 times: keep one"),
        (PLAIN.replace("split\n", "split,Split\n"), "t.csv: the column split occurs 2 times: keep one"),
        (PLAIN.replace("uri", "path"), "wanted the columns uri, label, uri is missing, found path, label, split"),
        (PLAIN.replace("uri", "path").replace(",", ";"), "uri is missing, found path, label, split"),
        (PLAIN.replace("a/a1.mp4,a", '"a/a1.mp4,a'), "t.csv, line 2: malformed CSV"),
        (PLAIN.replace("a/a1.mp4", '"a/a1.mp4').replace("b/b1.mp4", 'b/b1.mp4"'), "values without line breaks"),
        (PLAIN.replace("a/a1.mp4,a,train\na", '"a/a1.mp4,a,train\na"'), "line 2: malformed CSV"),
        (PLAIN.replace("a/a1.mp4", "../other/a1.mp4"), r"line 2: .* below catalog.root .*, got uri '../other/a1.mp4'"),
        (PLAIN.replace("a/a1.mp4", "/elsewhere/a1.mp4"), "line 2: .* below catalog.root"),
        (PLAIN.replace("a/a1.mp4", "file:///elsewhere/a1.mp4"), "line 2: .* below catalog.root"),
        (PLAIN + "./a/a1.mp4,a,train\n", "t.csv, line 5: a/a1.mp4 is in split train twice, first at .*line 2"),
        (PLAIN + "file://ROOT/a/a%31.mp4,b,train\n", "line 5: a/a1.mp4 has class 'b' and, at .*line 2"),
        (as_parquet(["uri", "label", "label"], [["a/a1.mp4"], ["a"], ["b"]]), "the column label occurs 2 times"),
        (as_parquet(["uri", "label"], [["a/a1.mp4"], [["a", "b"]]]), "row 1: expected a single value in label"),
        (as_parquet(["uri", "label"], [["a/a1.mp4"], [float("nan")]]), "row 1: wanted a label"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, table: str | bytes, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        catalog_of(tmp_path, table)


def test_columns_of_parquet_are_read_whatever_their_type(tmp_path: Path) -> None:
    labels = [1.0, 10.0, 2.0]
    columns: list[object] = [list(CLIPS), labels, pa.array(["train", "Train", "train"]).dictionary_encode(), [0, 1, 2]]
    catalog = catalog_of(tmp_path, as_parquet(["uri", "Label", "Split", "__index_level_0__"], columns), name="t.PQ")
    assert catalog.classes == ("1", "2", "10") and catalog.notes == ()
    assert set(splits(catalog).values()) == {("train",)}
    as_bytes = as_parquet(["uri", "label"], [[clip.encode() for clip in CLIPS], pa.array([b"a", b"a", b"b"])])
    assert catalog_of(tmp_path, as_bytes, name="named.csv").classes == ("a", "b")


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "clips", "noted"),
    [
        ("csv_column_Split_capital", 3, ""),
        ("csv_file_uris_percent_encoded", 9, ""),
        ("csv_pandas_index_column", 2, ""),
        ("csv_paths_begin_with_dot_slash", 2, ""),
    ],
)
def test_tables_that_were_read_too_literally_give_the_clips_they_name(
    real: Path, tmp_path: Path, name: str, clips: int, noted: str
) -> None:
    names = [f"{label}/{label}{number}.mp4" for label in "ab" for number in (1, 2, 3)]
    names += ["a/100%25.mp4", "a/with space.mp4", "b/cafe\u0301.mp4"]
    text = (real / "bugs" / f"{name}.csv").read_text().replace("/DATA", "ROOT")
    catalog = catalog_of(tmp_path, text, clips=names)
    assert len(catalog.clips) == clips
    assert {split for clip in catalog.clips for split in clip.splits} == (
        {"train"} if clips == 2 else {"train", "test"}
    )
    assert not any("not under" in note or '"all"' in note for note in catalog.notes)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**50] * 3, pa.timestamp("s")),
        pa.array([2**58] * 3, pa.timestamp("us")),
        pa.array([2**60] * 3, pa.duration("s")),
        pa.array([b"a", b"\xff", b"b"]).view(pa.string()),
    ],
    ids=lambda values: str(values.type),
)
@pytest.mark.parametrize("column", ["uri", "label", "split"])
def test_values_of_parquet_that_are_no_text_are_one_line(tmp_path: Path, column: str, values: pa.Array) -> None:
    columns = {"uri": list(CLIPS), "label": list("aab"), "split": ["train", "test", "train"]} | {column: values}
    table = as_parquet(list(columns), list(columns.values()))
    with pytest.raises(CatalogError, match=rf"column {column} has values that cannot be written as text \([^\n]+\)$"):
        catalog_of(tmp_path, table, name="t.parquet")


@pytest.mark.parametrize("head", [b"PK\3\4", b"\xd0\xcf\x11\xe0", b"\x1f\x8b"])
@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.csv.gz"])
def test_workbook_or_archive_is_to_be_exported(tmp_path: Path, head: bytes, name: str) -> None:
    with pytest.raises(CatalogError, match="found a workbook or an archive: export the table as CSV"):
        catalog_of(tmp_path, head + bytes(range(200)), name=name)
