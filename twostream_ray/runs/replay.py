"""Replay of tracking outboxes: delivers to MLflow what runs logged while it was unreachable."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from twostream_ray import storage, tracking
from twostream_ray.errors import OutboxError, TrackingError
from twostream_ray.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Deliver to MLflow what was logged while it was unreachable; idempotent."""

    runs: list[str] = field(default_factory=list)
    """Directories or s3:// prefixes of runs, as runs/NAME; by default every run below `storage`."""

    storage: str = "runs"
    """Directory or s3:// prefix of all runs."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow; each run goes to the experiment that it was started for."""


def replay(config: ReplayConfig) -> Iterator[tracking.Delivery]:
    """Deliver the outboxes of the named runs, or of all below `config.storage`.

    Raises:
        OutboxError: some have no outbox, or a damaged one; all others are delivered.
        TrackingError: MLflow does not answer; runs before it are delivered.
        StorageError: a run's folder cannot be read.
    """
    uris = [storage.absolute(run) for run in config.runs]
    if not uris:
        uris = tracking.list_outboxes(storage.absolute(config.storage))
        if not uris:
            raise TrackingError(
                f"no run below {config.storage} has a tracking outbox: name a run's directory, or set --storage"
            )
    bad: list[OutboxError] = []
    for uri in uris:
        try:
            yield tracking.replay(uri, config=config.tracking)
        except OutboxError as error:
            bad.append(error)
    if bad:
        more = f" (and {len(bad) - 1} more runs)" if len(bad) > 1 else ""
        raise OutboxError(f"{bad[0]}{more}")
