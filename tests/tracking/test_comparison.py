import uuid

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import RegistryError
from twostream_ray.tracking import (
    Measurement,
    TrackingConfig,
    comparable_measurement,
    find_version,
    names_version,
    record_measurement,
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
    with pytest.raises(RegistryError, match=rf"no measurement: `twostream evaluate --model 'models:/{name}/2'"):
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


def test_promote_compares_by_what_was_recorded(
    name: str, tracking: TrackingConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["promote", "2", "--tracking.uri", str(tracking.uri), "--tracking.model_name", name]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "twostream promote: error:" in line and "--record true" in line
    measure(name, 1, config=tracking)
    measure(name, 2, config=tracking)
    assert main(arguments) == 0
    assert "version 2 is champion: top1 0.2000 beats 0.1000 of version 1 on 9 of 10 clips" in capsys.readouterr().out
    assert find_version(f"models:/{name}@champion", config=tracking) == (name, 2)
