import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import RegistryError
from twostream_ray.runs.score.promotion import promote
from twostream_ray.runs.score.settings import PromoteConfig
from twostream_ray.tracking import (
    Measurement,
    TrackingConfig,
    comparable_measurement,
    find_version,
    log_data,
    logged_shards,
    names_version,
    newest_version,
    record_measurement,
    start_run,
    unmeasured_champion,
)
from twostream_ray.tracking.connection import client_for

pytestmark = pytest.mark.slow

OLD, NEW = "0a" * 32, "1b" * 32


@pytest.fixture
def name(tracking: TrackingConfig) -> str:
    """A registered model with two versions, the first of which is champion."""
    name, client = f"model {uuid.uuid4()}", client_for(tracking.resolved_uri())
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, source="s3://nowhere/model", run_id=None)
    client.set_registered_model_alias(name, "champion", "1")
    return name


def measure(name: str, version: int, *, config: TrackingConfig, split: str = "test", manifest: str = OLD) -> None:
    measurement = Measurement(
        manifest_hash=manifest, split=split, num_evaluated=9, num_clips=10, metrics={"top1": version / 10}
    )
    record_measurement(name, version, measurement, config=config)


def test_versions_are_found_by_number_and_alias(name: str, tracking: TrackingConfig) -> None:
    assert find_version(f"models:/{name}@champion", config=tracking) == (name, 1)
    assert find_version(f"models:/{name}/2", config=tracking) == (name, 2)
    with pytest.raises(RegistryError, match=r"check tracking\.uri and the model's name, version or alias"):
        find_version(f"models:/{name}/3", config=tracking)
    assert not any(map(names_version, ("runs:/ab/model", "models:/m-0a", "directory", "models:/a", "s3://a/b")))


def test_of_several_measurements_the_one_that_the_champion_has_too_is_compared(
    name: str, tracking: TrackingConfig
) -> None:
    with pytest.raises(RegistryError, match=rf"no measurement: run `twostream evaluate --model 'models:/{name}/2'"):
        comparable_measurement(name, 2, config=tracking)
    measure(name, 2, config=tracking, split="a split")
    assert comparable_measurement(name, 2, config=tracking).split == "a split"
    measure(name, 2, config=tracking, manifest=NEW)
    with pytest.raises(RegistryError, match=r"measured 2 times: choose .*--manifest 1b1b1b1b1b1b"):
        comparable_measurement(name, 2, config=tracking)
    assert comparable_measurement(name, 2, config=tracking, manifest="0a").manifest_hash == OLD
    assert comparable_measurement(name, 2, config=tracking, split="test").manifest_hash == NEW
    measure(name, 1, config=tracking, manifest=NEW)
    assert comparable_measurement(name, 2, config=tracking).manifest_hash == NEW


def test_the_shards_of_a_version_are_those_that_its_run_was_given(
    name: str, tracking: TrackingConfig, tmp_path: Path
) -> None:
    run = start_run(tracking, run_name="run", run_uri=str(tmp_path), parameters={}, tags={})
    log_data(run, name="a", manifest_hash=OLD, source="s3://bucket/shards", profile={}, context="training")
    client_for(tracking.resolved_uri()).create_model_version(name, source="s3://nowhere/model", run_id=run.run_id)
    assert logged_shards(name, 3, config=tracking, manifest_hash=OLD) == "s3://bucket/shards"
    assert logged_shards(name, 3, config=tracking, manifest_hash=NEW) is None
    assert logged_shards(name, 1, config=tracking, manifest_hash=OLD) is None
    measure(name, 3, config=tracking)
    assert "--shards s3://bucket/shards" in promote(PromoteConfig(tracking=replace(tracking, model_name=name)))


def test_a_champion_is_unmeasured_on_each_split_and_manifest_apart(name: str, tracking: TrackingConfig) -> None:
    assert unmeasured_champion(name, config=tracking, manifest_hash=OLD, split="test") == 1
    measure(name, 1, config=tracking)
    assert unmeasured_champion(name, config=tracking, manifest_hash=OLD, split="test") is None
    assert unmeasured_champion(name, config=tracking, manifest_hash=NEW, split="test") == 1
    assert unmeasured_champion(name, config=tracking, manifest_hash=OLD, split="val") == 1
    client_for(tracking.resolved_uri()).delete_registered_model_alias(name, "champion")
    assert unmeasured_champion(name, config=tracking, manifest_hash=NEW, split="test") is None
    assert newest_version(name, config=tracking) == 2


def test_promote_compares_by_what_was_recorded(
    name: str, tracking: TrackingConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["promote", "2", "--tracking.uri", str(tracking.uri), "--tracking.model_name", name]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "twostream promote: error:" in line and "--shards SHARDS --split test" in line
    measure(name, 1, config=tracking)
    measure(name, 2, config=tracking)
    assert main(arguments) == 0
    assert "version 2 is champion: top1 0.2000 beats 0.1000 of version 1 on 9 of 10 clips" in capsys.readouterr().out
    assert find_version(f"models:/{name}@champion", config=tracking) == (name, 2)
