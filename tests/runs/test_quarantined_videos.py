import csv
import shutil
from pathlib import Path

import pytest
from small_ingests import config

from twostream_ray.cli import main
from twostream_ray.data.shards.shards import open_shards
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.errors import TooManyBadVideosError
from twostream_ray.runs.ingest import ingest


def test_corrupt_videos_are_quarantined_with_reasons_and_the_run_goes_on(
    cluster: None, real: Path, some_videos: Path, tmp_path: Path
) -> None:
    folder = next(path for path in some_videos.rglob("*") if path.is_dir() and list(path.glob("*.mp4")))
    bad = [path for path in (real / "corrupt").iterdir() if path.suffix in (".mp4", ".gif")]
    for path in bad:
        shutil.copy(path, folder / path.name)
    good = len([path for path in some_videos.rglob("*.*") if path.name not in {b.name for b in bad}])
    report = ingest(config(some_videos, tmp_path / "out", max_bad_fraction=1.0))
    assert (report.clips, report.quarantined) == (good, len(bad))
    with (tmp_path / "out/quarantine.csv").open() as file:
        table = {Path(row["uri"]).name: row for row in csv.DictReader(file)}
    assert table.keys() == {path.name for path in bad}
    assert "a clip needs at least 2 frames, got 1" in table["frame_exceeds_screen.gif"]["reason"]
    assert "decoding failed after 28 of 50" in table["corrupted.mp4"]["reason"]
    assert "not a readable video, 0 bytes" in table["empty.mp4"]["reason"]
    assert all(len(row["sha256"]) == 64 for row in table.values())


def test_too_many_bad_videos_fail_the_ingest_and_name_the_table(
    cluster: None, some_videos: Path, tmp_path: Path
) -> None:
    for path in sorted(some_videos.rglob("*.mp4"))[:3]:
        path.write_bytes(b"not a video")
    with pytest.raises(
        TooManyBadVideosError, match=r"3 of \d+ videos could not be used, at most 5.0% may: see .*quarantine.csv"
    ):
        ingest(config(some_videos, tmp_path / "out"))
    assert (tmp_path / "out/quarantine.csv").is_file()


def table_of(videos: Path, folder: Path, *, missing: int) -> CatalogConfig:
    """A table of these videos, which are all of the split train, and of others that are not there, of the split val."""
    there = [path.relative_to(videos).as_posix() for path in sorted(videos.rglob("*.*"))]
    rows = [f"{path},{Path(path).parent.name},train" for path in there]
    rows += [
        f"{Path(there[number]).parent}/gone{number}.mp4,{Path(there[number]).parent.name},val"
        for number in range(missing)
    ]
    (folder / "clips.csv").write_text("uri,label,split\n" + "\n".join(rows) + "\n")
    return CatalogConfig(layout="table", root=str(videos), lists=str(folder / "clips.csv"))


def test_videos_that_a_table_names_and_that_are_not_there_are_quarantined_and_counted(
    cluster: None, some_videos: Path, tmp_path: Path
) -> None:
    catalog = table_of(some_videos, tmp_path, missing=2)
    good, out = len(list(some_videos.rglob("*.*"))), tmp_path / "out"
    wanted = config(some_videos, out, catalog=catalog, max_bad_fraction=2 / (good + 2))
    for _ in range(2):  # a second ingest, which has nothing to do, counts them too
        report = ingest(wanted)
        assert (report.clips, report.quarantined, report.missing) == (good, 2, 2)
        assert report.reasons == {"MissingError": 2}
        assert "2 videos quarantined (2 of them listed but missing)" in report.sentence()
        with (out / "quarantine.csv").open() as file:
            table = {row["uri"]: row["reason"] for row in csv.DictReader(file)}
        assert len(table) == 2 and all("gone" in uri and "it does not exist" in why for uri, why in table.items())
        assert open_shards(str(out)).quarantined == {"val": 2}
    assert report.done_before == good
    gone = some_videos / next(iter(table)).removeprefix(f"{some_videos}/")
    shutil.copy(next(some_videos.rglob("*.mp4")), gone)
    report = ingest(wanted)
    assert (report.clips, report.quarantined) == (good + 1, 1)


def test_too_many_missing_videos_are_refused_before_the_work_begins_and_in_the_table(
    some_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = table_of(some_videos, tmp_path, missing=3)
    num_listed = len(list(some_videos.rglob("*.*"))) + 3
    said = rf"3 of {num_listed} videos could not be used, at most 5.0% may: they are listed but missing, as .*gone0.mp4"
    with pytest.raises(TooManyBadVideosError, match=said + r".*quarantine.csv; .* with --max_bad_fraction 0\.\d+"):
        ingest(config(some_videos, tmp_path / "out", catalog=catalog))
    assert (tmp_path / "out/quarantine.csv").read_text().count("it does not exist") == 3
    assert not (tmp_path / "out/manifest.json").exists()
    options = ["--catalog.layout", "table", "--catalog.root", catalog.root, "--catalog.lists", str(catalog.lists)]
    assert main(["ingest", *options, "--out", str(tmp_path / "out")]) == 2
    assert "listed but missing" in capsys.readouterr().err
