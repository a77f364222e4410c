import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from begun_runs import CONTRACT, begun, begun_search, experiment, ingested

from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.search.ray_tune import tune
from twostream_ray.runs.train.run import train
from twostream_ray.tracking.outbox import Identity, Outbox

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "other classes": ({"classes": ("a", "c")}, r"it had 2 classes, has 2 \(b was among them; c is among them\)"),
    "a class more": ({"classes": ("a", "b", "c"), "clips": range(6)}, r"it had 2 classes, has 3 \(c is among them\)"),
    "classes in another order": ({"classes": ("b", "a")}, "its classes are in another order"),
    "another bound of flow": ({"contract": replace(CONTRACT, bound_px=5.0)}, "its flow bound_px was 20.0, is 5.0"),
    "a clip that is gone": ({"clips": (0, 1, 2)}, r"1 of the 4 shards that it began with are gone"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("what", ["an unfinished run", "a finished run", "a search"])
def test_a_run_does_not_go_on_with_other_data_and_both_are_named(tmp_path: Path, what: str, change: str) -> None:
    before = ingested(tmp_path / "shards")
    config: Any = begun_search(tmp_path) if what == "a search" else begun(tmp_path, finished=what == "a finished run")
    changed, expected = CHANGES[change]
    after = ingested(tmp_path / "shards", **changed)
    with pytest.raises(
        ConfigError,
        match=rf"began with manifest {before.hash[:12]} of .*/shards, which now has {after.hash[:12]}: "
        rf"{expected}.*"
        "choose another --name, or ingest the earlier data again",
    ):
        tune(config) if what == "a search" else train(config)


def test_a_run_keeps_to_the_clips_that_it_began_with_when_others_are_added(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = ingested(tmp_path / "shards")
    config = begun(tmp_path, finished=True)
    after = ingested(tmp_path / "shards", clips=range(6))
    assert train(config).done_before
    (line,) = [message for message in caplog.messages if "the added clips" in message]
    assert before.hash[:12] in line and after.hash[:12] in line
    assert "the added clips are left out, 4 instead of 6 are used; to use them too choose another --name" in line
    kept = RunFolder.of(config).stored_data(shards=config.data.shards)
    assert kept is not None and kept.uri == after.uri
    assert (kept.hash, kept.index, kept.shard_names) == (before.hash, before.index, before.shard_names)


def test_the_same_data_ingested_again_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ingested(tmp_path / "shards")
    config = begun(tmp_path, finished=True)
    ingested(tmp_path / "shards")
    assert train(config).done_before
    assert not [line for line in caplog.messages if "manifest" in line]


@pytest.mark.parametrize("recorded", ["the same", "another", "none"])
def test_of_a_run_that_an_earlier_version_began_its_journal_names_the_data(
    tmp_path: Path, recorded: str, caplog: pytest.LogCaptureFixture
) -> None:
    shard_set, folder = ingested(tmp_path / "shards"), RunFolder.of(experiment(tmp_path))
    tags = {"the same": {"manifest_hash": shard_set.hash}, "another": {"manifest_hash": "0" * 64}, "none": {}}[recorded]
    identity = Identity(key="0" * 32, run_name="run", experiment="x", start_ms=1, parameters={}, tags=tags)
    Outbox(run_uri=folder.uri).begin(identity)
    if recorded == "another":
        with pytest.raises(ConfigError, match=r"run 'run' began with manifest 000000000000, .* now has "):
            folder.data_of(shard_set.uri)
        return
    assert folder.data_of(shard_set.uri).hash == shard_set.hash
    said = [message for message in caplog.messages if "has no record of the data it started with" in message]
    assert len(said) == (recorded == "none")


def test_shards_that_were_moved_are_the_same_and_those_of_another_set_are_not(tmp_path: Path) -> None:
    ingested(tmp_path / "shards")
    config = begun(tmp_path, finished=True)
    (tmp_path / "shards").rename(tmp_path / "moved")
    ingested(tmp_path / "other", clips=range(8, 12))
    assert train(replace(config, data=replace(config.data, shards=str(tmp_path / "moved")))).done_before
    with pytest.raises(ConfigError, match="4 of the 4 shards that it began with are gone"):
        train(replace(config, data=replace(config.data, shards=str(tmp_path / "other"))))


def test_an_ingest_while_a_run_begins_is_noticed(tmp_path: Path) -> None:
    opened = ingested(tmp_path / "shards")
    ingested(tmp_path / "shards", clips=range(5))
    with pytest.raises(ShardError, match="an ingest has just written another: run the same command again"):
        RunFolder.of(experiment(tmp_path)).keep_data(opened)
    assert not (tmp_path / "runs/run/data").exists()


def test_a_shard_that_an_ingest_has_removed_is_distinguished_from_a_damaged_one(tmp_path: Path) -> None:
    began, folder = ingested(tmp_path / "shards"), RunFolder.of(experiment(tmp_path))
    error = ShardError("x/shards/1.parquet, row group 0, cannot be read: ingest again")
    assert folder.explained(error, began) is error
    ingested(tmp_path / "shards", clips=(0, 1))
    message = str(folder.explained(error, began))
    assert message.startswith(f"run 'run' uses manifest {began.hash[:12]} of ") and "x/shards/1.parquet" in message


def test_data_that_were_never_written_down_are_those_that_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard_set = ingested(tmp_path / "shards")
    with caplog.at_level(logging.WARNING):
        assert RunFolder.of(experiment(tmp_path)).data_of(shard_set.uri).hash == shard_set.hash
    assert not caplog.messages
