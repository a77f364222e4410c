"""A registered model whose versions have scores, for tests of champions and rollbacks."""

import pytest

from twostream_ray.tracking import (
    Measurement,
    TrackingConfig,
    Verdict,
    promote,
    record_measurement,
)
from twostream_ray.tracking.connection import client_for

OLD, NEW = "0a" * 32, "1b" * 32


class Model:
    """A registered model whose versions have scores but no files."""

    def __init__(self, config: TrackingConfig, name: str) -> None:
        self.config, self.name = config, name
        self.client = client_for(config.resolved_uri())
        self.client.create_registered_model(name)

    def version(self, top1: float | None, *, manifest: str = OLD, evaluated: int = 300) -> int:
        made = self.client.create_model_version(self.name, source="s3://nowhere/model", run_id=None)
        number = int(made.version)
        if top1 is not None:
            self.measure(number, top1, manifest=manifest, evaluated=evaluated)
        return number

    def measure(self, version: int, top1: float, *, manifest: str = OLD, evaluated: int = 300) -> None:
        measurement = Measurement(
            manifest_hash=manifest, split="test", num_evaluated=evaluated, num_clips=300, metrics={"top1": top1}
        )
        record_measurement(self.name, version, measurement, config=self.config)

    def promote(self, version: int, *, manifest: str = OLD) -> Verdict:
        return promote(self.name, version, config=self.config, manifest_hash=manifest, split="test")

    def aliases(self) -> dict[str, int]:
        return {alias: int(number) for alias, number in self.client.get_registered_model(self.name).aliases.items()}


def promote_just_before(monkeypatch: pytest.MonkeyPatch, method: str, other: object) -> None:
    from mlflow import MlflowClient

    real = getattr(MlflowClient, method)

    def first_the_other(client: object, *arguments: object) -> object:
        monkeypatch.undo()
        other()  # type: ignore[operator]
        return real(client, *arguments)

    monkeypatch.setattr(MlflowClient, method, first_the_other)
