"""Snapshot of a registered model: the tags of its versions, its champion, and the candidates for champion."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from twostream_ray.errors import RegistryError
from twostream_ray.storage import json_files
from twostream_ray.tracking.measurement import Measurement, measurement_from

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases."""

_logger = logging.getLogger(__name__)

CANDIDATE_TAG = "contends"
"""Tag of a version: when it was declared a candidate, and on which criterion."""
CHAMPION_SINCE_TAG = "champion_since"
"""Tag of a version: when it last became champion, by which a rollback finds the previous one."""
ROLLED_BACK_TAG = "rolled_back"
"""Tag of a version that was rolled back: it is no candidate until it is promoted, or rolled back to, again."""
_CLOCKS_DIFFER_SECONDS = 600.0
"""How much the clock of another job may be ahead."""
_TOLERATED = timedelta(seconds=_CLOCKS_DIFFER_SECONDS)
_DECLARATION = json_files.record(
    {
        "declared": {"type": "number", "minimum": 0, "maximum": 1e11},
        "terms": json_files.record(dict.fromkeys(("manifest_hash", "split", "metric"), json_files.WORD)),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """Data and metric by which two versions are compared."""

    manifest_hash: str
    split: str
    metric: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A version that was declared a candidate for `champion`."""

    version: int
    criterion: Criterion
    declared: float
    """When, in seconds since 1970 by the clock of its job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredModel:
    """A registered model as read at one moment."""

    tags: Mapping[int, Mapping[str, str]]
    """Tags by version."""
    champion: int | None

    def measurement(self, version: int, criterion: Criterion) -> Measurement | None:
        """The measurement of a version by this criterion; None if it has none."""
        found = measurement_from(
            self.tags.get(version, {}), manifest_hash=criterion.manifest_hash, split=criterion.split
        )
        return found if found and criterion.metric in found.metrics else None

    def is_rolled_back(self, version: int) -> bool:
        """Whether the version was rolled back."""
        return ROLLED_BACK_TAG in self.tags[version]

    def champion_before(self) -> int | None:
        """The previous champion, without versions that were rolled back."""
        since = {
            version: moment
            for version, tags in self.tags.items()
            if version != self.champion and not self.is_rolled_back(version) and (moment := champion_since(tags))
        }
        return max(since, key=lambda version: (since[version], version), default=None)

    def candidates(self, *, since: float, now: float) -> list[Candidate]:
        """Candidates declared since `since` by a criterion that they were measured on, oldest version first.

        Times are seconds since 1970.
        """
        found = []
        for version, tags in sorted(self.tags.items()):
            if CANDIDATE_TAG not in tags or self.is_rolled_back(version):
                continue
            try:
                stored = json_files.parse_json(
                    tags[CANDIDATE_TAG],
                    _DECLARATION,
                    where=f"tag {CANDIDATE_TAG} of version {version}",
                    what="a declaration of a candidate",
                    way_out="the version is no candidate; promoting it writes the tag again",
                    error=RegistryError,
                )
            except RegistryError as error:  # any user may set a tag
                _logger.warning("%s", error)
                continue
            candidate = Candidate(version=version, criterion=Criterion(**stored["terms"]), declared=stored["declared"])
            # One from the future would stay a candidate forever.
            recent = since <= candidate.declared <= now + _CLOCKS_DIFFER_SECONDS
            if recent and self.measurement(version, candidate.criterion) is not None:
                found.append(candidate)
        return found


def read_registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """Read a registered model; raises what MLflow raises."""
    tags: dict[int, Mapping[str, str]] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        tags.update({int(version.version): version.tags for version in page})
        token = page.token
        if not token:
            return RegisteredModel(tags=tags, champion=version_with(client, name, CHAMPION))


def champion_since(tags: Mapping[str, str]) -> datetime | None:
    """When a version last became champion, from its tag; None if it is missing or invalid."""
    try:
        moment = datetime.fromisoformat(tags.get(CHAMPION_SINCE_TAG, ""))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None and moment <= datetime.now(UTC) + _TOLERATED else None


def version_with(client: MlflowClient, name: str, alias: str) -> int | None:
    """The version that has the alias, which `search_model_versions` leaves out."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else int(version)
