"""A registry with several versions of a small model, whose champion can be moved."""

from __future__ import annotations

from pathlib import Path

from running_service import register_version, stored_model

from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for

NAME = "two-stream"


class Registry:
    """Versions 1, 2, ... of networks with other weights each."""

    def __init__(self, folder: Path, *, versions: int) -> None:
        self.config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        self.packages = {}
        for seed in range(versions):
            package = stored_model(folder / f"package{seed}", seed=seed)
            self.packages[str(register_version(package, name=NAME, config=self.config))] = package

    def move_champion(self, version: str) -> None:
        """Let the champion be this version."""
        client_for(self.config.resolved_uri()).set_registered_model_alias(NAME, "champion", version)
