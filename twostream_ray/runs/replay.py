"""Delivering to MLflow what runs logged while it was away."""

from collections.abc import Iterator

from twostream_ray import storage, tracking
from twostream_ray.errors import TrackingError
from twostream_ray.runs.config import ReplayConfig


def replay(config: ReplayConfig) -> Iterator[tracking.Delivery]:
    """Deliver the journals of the runs that are named, or of all below `config.storage`.

    Raises:
        TrackingError: there is no journal, or MLflow does not answer; runs before it are delivered.
        StorageError: a place cannot be read.
    """
    places = [storage.absolute(run) for run in config.runs]
    if not places:
        places = tracking.journals_below(storage.absolute(config.storage))
        if not places:
            raise TrackingError(
                f"no run below {config.storage} has a tracking journal: name a run's directory, or set --storage"
            )
    for place in places:
        yield tracking.replay(place, config=config.tracking)
