import json
from dataclasses import replace
from pathlib import Path

import pytest
from whole_shards import write_shards

from twostream_ray.data.shards.quarantine import read_quarantine
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two clips of train, two of test, and beside the latter a video that is none."""
    folder = tmp_path_factory.mktemp("data")
    clips = SyntheticConfig(train_clips=4, val_clips=0, test_clips=4, size_px=48)
    synthesize(clips, folder / "videos", workers=1)
    one = next((folder / "videos/test").rglob("*.mp4"))
    one.with_name("broken.mp4").write_bytes(b"no video")
    return write_shards(folder / "videos", folder / "shards", short_side_px=48)


def test_the_quarantined_videos_of_a_split_are_named_with_the_reason(shards: ShardSet) -> None:
    (one,) = read_quarantine(shards, split="test")
    assert one.keys() == {"clip_id", "uri", "reason"}
    assert (
        one["uri"].endswith("broken.mp4") and one["clip_id"].endswith("broken.mp4") and "DecodeError" in one["reason"]
    )
    assert read_quarantine(shards, split="train") == ()


def test_of_an_earlier_ingest_they_are_known_where_all_are_of_the_split(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (Path(shards.uri) / "quarantine.csv").read_text().splitlines()
    (tmp_path / "quarantine.csv").write_text(
        "\n".join(line.partition(',"[')[0].replace(",splits", "") for line in lines)
    )
    assert "splits" not in (tmp_path / "quarantine.csv").read_text()
    earlier = replace(shards, uri=str(tmp_path))
    assert len(read_quarantine(earlier, split="test")) == 1
    assert read_quarantine(replace(earlier, quarantined={"test": 2}), split="test") == ()
    assert "has 1 videos of test in quarantine, the manifest says 2" in caplog.text


def test_a_table_that_is_damaged_or_gone_is_said_to_be_so(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(shards, uri=str(tmp_path))
    for content in (None, "clip_id,uri,reason,sha256,splits\na,b,c,d,{", "mine\n1\n"):
        if content is not None:
            (tmp_path / "quarantine.csv").write_text(content)
        caplog.clear()
        assert read_quarantine(other, split="test") == ()
        assert "does not say which 1 videos of test are in quarantine" in caplog.text
    assert json.loads((Path(shards.uri) / "manifest.json").read_text())["quarantined_by_split"] == {"test": 1}
    assert open_shards(shards.uri).quarantined == {"test": 1}
