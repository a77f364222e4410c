from pathlib import Path

import pandas as pd
import pytest

from twostream_ray import storage
from twostream_ray.data.sources.video_files import find_videos
from twostream_ray.errors import CatalogError
from twostream_ray.runs.score.predict import videos_of
from twostream_ray.runs.score.settings import PredictConfig


def found(*named: str) -> list[str]:
    return list(videos_of(PredictConfig(videos=list(named))).uris)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a/c.AVI", "a/d/e[1].webm", ".hidden/f.mp4", "notes.txt.bak", "g.mp4.part"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_a_folder_means_every_video_below_it_and_says_what_it_leaves_out(tree: Path) -> None:
    assert found(str(tree)) == [f"{tree}/{name}" for name in ("a/c.AVI", "a/d/e[1].webm", "b.mp4")]
    (note,) = videos_of(PredictConfig(videos=[str(tree)])).notes
    assert note == f"files under {tree} that are not videos, left out: 2, for example g.mp4.part"
    with pytest.raises(
        CatalogError, match=r"no video under .*/none: wanted files ending in \.3g2 .*, found 0 other files"
    ):
        (tree / "none").mkdir()
        found(str(tree / "none"))


@pytest.mark.parametrize(
    ("glob", "fits"),
    [
        ("*.mp4", ["b.mp4"]),
        ("**/*.AVI", ["a/c.AVI"]),
        ("**/*.[aw]*", ["a/d/e[1].webm"]),
        ("*/*/*.mp4", []),
        ("**/*.[Aw]*", ["a/c.AVI", "a/d/e[1].webm"]),
        ("?/[!x].AVI", ["a/c.AVI"]),
        ("a/**", ["a/c.AVI", "a/d/e[1].webm"]),
    ],
)
def test_a_glob_means_the_files_that_it_fits(tree: Path, glob: str, fits: list[str]) -> None:
    if fits:
        assert found(f"{tree}/{glob}") == [f"{tree}/{name}" for name in fits]
    else:
        with pytest.raises(CatalogError, match=r"no file under .* matches"):
            found(f"{tree}/{glob}")


def test_a_glob_below_the_working_directory_gives_relative_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert found("a/*.AVI", "*.mp4") == ["a/c.AVI", "b.mp4"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tree: Path) -> None:
    assert found(f"{tree}/a/d/e[1].webm") == [f"{tree}/a/d/e[1].webm"]


def test_a_name_that_is_nowhere_is_a_video_that_may_be_missing() -> None:
    assert found("nowhere.mp4", "nowhere.mp4") == ["nowhere.mp4"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "txt"])
def test_a_table_names_videos_relative_to_itself_or_whole(tree: Path, kind: str) -> None:
    table, uris = tree / f"list.{kind}", ["b.mp4", "s3://bucket/x.mp4", "/y.mp4", "file:///z.mp4"]
    if kind == "txt":
        table.write_text("# videos\n" + "\n\n".join(uris) + "\n")
    elif kind == "csv":
        pd.DataFrame({"number": range(4), "URI": uris}).to_csv(table)
    else:
        pd.DataFrame({"uri": uris}).to_parquet(table)
    assert found(str(table)) == [f"{tree}/b.mp4", *uris[1:]]


def test_a_table_without_videos_is_refused(tree: Path) -> None:
    (tree / "a.txt").write_text("\n# nothing\n")
    with pytest.raises(CatalogError, match=r"a\.txt: expected URIs of videos, found none"):
        found(str(tree / "a.txt"))
    (tree / "a.csv").write_text("path\nb.mp4\n")
    with pytest.raises(CatalogError, match="wanted the columns uri, uri is missing, found path"):
        found(str(tree / "a.csv"))
    (tree / "b.csv").write_text("uri,n\n,1\n")
    with pytest.raises(CatalogError, match="the uri of a video, got an empty cell"):
        found(str(tree / "b.csv"))


def test_what_is_below_a_prefix_has_whole_uris() -> None:
    listed = [("x/1.mp4", 1), ("x/2.txt", 1), ("y.mkv", 1)]
    files = find_videos(
        ["s3://bucket/videos/", "s3://bucket/videos/x/*"],
        kind_of=lambda uri: "folder" if uri.endswith("/") else None,
        list_files=lambda uri: (
            [(name.removeprefix("x/"), 1) for name, _ in listed if "/x" not in uri or "x/" in name]
            if "/x" in uri
            else listed
        ),
        read_bytes=storage.read_bytes,
    )
    assert files.uris == ("s3://bucket/videos/x/1.mp4", "s3://bucket/videos/y.mkv", "s3://bucket/videos/x/2.txt")
    with pytest.raises(CatalogError, match="a glob may not cover the bucket's name"):
        find_videos(["s3://*/a"], kind_of=lambda _: None, list_files=lambda _: [], read_bytes=storage.read_bytes)
