"""Champion and challenger: promotion and rollback of a registered model's aliases, safe with concurrent jobs.

`champion` moves only to a version that beats the present one. MLflow's aliases are last write wins, with no
compare-and-set. So each job first declares its version a candidate (a tag), then computes the best of all recent
candidates, sets the alias to it, and reads again until the alias is what it should be. The last writer has read all
declarations made before; a later declarer has read what was written. So the better version stays, on SQLite as on a
server.
"""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from twostream_ray.errors import RegistryError
from twostream_ray.redaction import redact
from twostream_ray.storage import json_files
from twostream_ray.tracking.connection import ANSWER_S, client_for, registry_errors, short_timeouts, with_deadline
from twostream_ray.tracking.measurement import Measurement, evaluate_command, measurement_from, promote_command
from twostream_ray.tracking.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"

_logger = logging.getLogger(__name__)

_CANDIDATE = "contends"
"""Tag of a version: when it was declared a candidate, and on which criterion."""
_CHAMPION_SINCE = "champion_since"
"""Tag of a version: when it last became champion, by which a rollback finds the one before."""
_ROLLED_BACK = "rolled_back"
"""Tag of a version that a person took back: it is no candidate until it is promoted, or rolled back to, again."""
_CONCURRENT_SECONDS = 600.0
"""Candidates declared this long before another may still be writing; older ones are done, and a champion that a person
has set by hand since then stays."""
_CLOCKS_DIFFER_SECONDS = 600.0
"""By how much the clock of another job may be ahead."""
_TOLERATED = timedelta(seconds=_CLOCKS_DIFFER_SECONDS)
_DECLARATION = json_files.record(
    {
        "declared": {"type": "number", "minimum": 0, "maximum": 1e11},
        "terms": json_files.record(dict.fromkeys(("manifest_hash", "split", "metric"), json_files.WORD)),
    }
)
_MOST_ROUNDS = 20
_TAG_LENGTH = 5000
"""MLflow's limit for a tag of a version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Result of a promotion."""

    version: int
    """The version that was to be promoted."""
    alias: str
    """Its alias now: champion or challenger."""
    champion: int
    """The version that is champion now."""
    reason: str
    """Why, in a sentence with the numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Criterion:
    """What two versions are compared by."""

    manifest_hash: str
    split: str
    metric: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    version: int
    criterion: _Criterion
    declared: float
    """Seconds since the epoch, by the clock of its job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Registry:
    """One reading of a registered model."""

    tags: Mapping[int, Mapping[str, str]]
    """Of each version."""
    champion: int | None

    def measurement(self, version: int, criterion: _Criterion) -> Measurement | None:
        found = measurement_from(
            self.tags.get(version, {}), manifest_hash=criterion.manifest_hash, split=criterion.split
        )
        return found if found and criterion.metric in found.metrics else None

    def is_rolled_back(self, version: int) -> bool:
        return _ROLLED_BACK in self.tags[version]

    def champion_before(self) -> int | None:
        """The version that was champion last, of those that are not now and were not taken back."""
        since = {
            version: moment
            for version, tags in self.tags.items()
            if version != self.champion and not self.is_rolled_back(version) and (moment := _champion_since(tags))
        }
        return max(since, key=lambda version: (since[version], version), default=None)

    def candidates(self, *, since: float) -> list[_Candidate]:
        """Those declared since then on a criterion that they were measured on, oldest version first."""
        found = []
        for version, tags in sorted(self.tags.items()):
            if _CANDIDATE not in tags or self.is_rolled_back(version):
                continue
            try:
                stored = json_files.parse_json(
                    tags[_CANDIDATE],
                    _DECLARATION,
                    where=f"tag {_CANDIDATE} of version {version}",
                    what="a declaration of a candidate",
                    way_out=f"the version is no candidate; `twostream promote {version}` writes the tag anew",
                    error=RegistryError,
                )
            except RegistryError as error:  # any user may set a tag
                _logger.warning("%s", error)
                continue
            candidate = _Candidate(
                version=version, criterion=_Criterion(**stored["terms"]), declared=stored["declared"]
            )
            # One from the future would stay a candidate for ever.
            recent = since <= candidate.declared <= since + _CONCURRENT_SECONDS + _CLOCKS_DIFFER_SECONDS
            if recent and self.measurement(version, candidate.criterion) is not None:
                found.append(candidate)
        return found


@with_deadline(ANSWER_S)
def promote(
    name: str, version: int, *, config: TrackingConfig, manifest_hash: str, split: str, metric: str = "top1"
) -> Verdict:
    """Make a version `champion` if it beats the present one on the same manifest and split, otherwise `challenger`.

    It beats it if its metric is higher and both scored equally many clips of equally many. The first measured version
    of a model is champion. A champion that was never measured on this manifest stays: `twostream evaluate --record
    true` measures it there, `twostream promote` compares again. Of versions promoted at once the best becomes
    champion, the oldest of equals.

    Args:
        name: of the registered model.
        version: the one to promote; it has a measurement.
        config: the registry.
        manifest_hash: of the data to compare on.
        split: of it.
        metric: higher is better.

    Raises:
        RegistryError: there is no such version or measurement, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    criterion = _Criterion(manifest_hash=manifest_hash, split=split, metric=metric)
    again = promote_command(name, version, manifest_hash=manifest_hash, split=split)
    with (
        short_timeouts(),
        registry_errors(
            uri,
            wanted=f"promoting {name} version {version}",
            way_out=f"check tracking.model_name and tracking.uri, then `{again}`",
        ),
    ):
        client = client_for(uri)
        before = _read_registry(client, name)
        _require_measurement(before, name, version, criterion)
        now = time.time()
        declared = {"declared": now, "terms": {"manifest_hash": manifest_hash, "split": split, "metric": metric}}
        _set_tag(client, name, version, _CANDIDATE, json.dumps(declared))
        if _ROLLED_BACK in before.tags[version]:
            client.delete_model_version_tag(name, str(version), _ROLLED_BACK)
        after = _set_best_candidate(client, name, incumbent=before.champion, since=now - _CONCURRENT_SECONDS)
        _require_measurement(after, name, version, criterion)  # it may have been deleted meanwhile
        verdict = _verdict(before, after, name, version, criterion)
        if verdict.alias == CHALLENGER:
            _set_alias(client, name, CHALLENGER, version)
        elif _version_with(client, name, CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
    return verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """Result of a rollback."""

    champion: int
    """The version that is champion now."""
    taken_back: int | None
    """The version that was; None where nothing moved or the model had no champion."""
    reason: str
    """What happened, in a sentence."""


@with_deadline(ANSWER_S)
def rollback(name: str, *, config: TrackingConfig, to: int | None = None, because: str = "") -> Rollback:
    """Put `champion` back to the version that was so before, or to a named one; rolling back again goes further back.

    The version that was champion is tagged `rolled_back` with time, user and why: no later promotion brings it back,
    unless it is promoted itself, or rolled back to.

    Args:
        name: of the registered model.
        config: the registry.
        to: the version to make champion; none: the one that was so before.
        because: why, for the record.

    Raises:
        RegistryError: there is no such model or version, no earlier champion is on record, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    wanted = f"rolling back {name}" + (f" to version {to}" if to else "")
    with short_timeouts(), registry_errors(uri, wanted=wanted, way_out="check tracking.model_name and tracking.uri"):
        client = client_for(uri)
        before = _read_registry(client, name)
        known = ", ".join(map(str, sorted(before.tags))) or "none"
        if to is not None and to not in before.tags:
            raise RegistryError(f"{name} has no version {to} to roll back to, only {known}")
        target = to or before.champion_before()
        if target is None:
            raise RegistryError(
                f"no version of {name} is on record as champion before {before.champion or 'now'}: name one of {known} "
                "with --to"
            )
        if target == before.champion:
            return Rollback(champion=target, taken_back=None, reason=f"version {target} is champion already")
        # First the tag, then the alias: a promotion that reads in between leaves the version that is tagged alone.
        if before.champion is not None:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            why = f": {because}" if because else ""
            note = redact(f"{when} by {_user()}, to version {target}{why}")
            _set_tag(client, name, before.champion, _ROLLED_BACK, note[:_TAG_LENGTH])
        if _ROLLED_BACK in before.tags[target]:
            client.delete_model_version_tag(name, str(target), _ROLLED_BACK)
        _set_champion(client, name, target, seen=before)
        if _version_with(client, name, CHALLENGER) == target:
            client.delete_registered_model_alias(name, CHALLENGER)
    left = "which had none" if before.champion is None else f"instead of version {before.champion}"
    return Rollback(
        champion=target, taken_back=before.champion, reason=f"version {target} is champion of {name}, {left}"
    )


def _set_best_candidate(client: MlflowClient, name: str, *, incumbent: int | None, since: float) -> _Registry:
    """Set `champion` to the best candidate until a reading after the write agrees; returns that reading."""
    for _ in range(_MOST_ROUNDS):
        seen = _read_registry(client, name)
        best = incumbent if incumbent in seen.tags else None
        if best is not None and seen.is_rolled_back(best):
            best = seen.champion  # a person rolled back meanwhile: what they chose is to be beaten
        for candidate in seen.candidates(since=since):
            if best is None or _beats(seen, candidate.version, best, candidate.criterion):
                best = candidate.version
        if best is None or best == seen.champion:
            return seen
        _set_champion(client, name, best, seen=seen)
    raise RegistryError(
        f"champion of {name} kept moving while {_MOST_ROUNDS} rounds were tried: `twostream promote VERSION` later"
    )


def _beats(seen: _Registry, challenger: int, champion: int, criterion: _Criterion) -> bool:
    """True if both were measured on this criterion, on equally many clips, and the challenger's metric is higher."""
    ours, theirs = seen.measurement(challenger, criterion), seen.measurement(champion, criterion)
    if ours is None or theirs is None or ours.n_of_n() != theirs.n_of_n():
        return False
    return ours.metrics[criterion.metric] > theirs.metrics[criterion.metric]


def _verdict(before: _Registry, after: _Registry, name: str, version: int, criterion: _Criterion) -> Verdict:
    assert after.champion is not None  # noqa: S101  (else the version itself would be)
    alias = CHAMPION if after.champion == version else CHALLENGER
    rival = before.champion if alias == CHAMPION else after.champion
    again = promote_command(name, version, manifest_hash=criterion.manifest_hash, split=criterion.split)
    where = f"split {criterion.split} of manifest {criterion.manifest_hash[:12]}"
    ours = after.measurement(version, criterion)
    theirs = None if rival is None else after.measurement(rival, criterion)
    assert ours is not None  # noqa: S101  (required above)
    if rival is None:
        why = "the model had none"
    elif rival == version:
        why = "it was so before"
    elif alias == CHAMPION and theirs is None:
        why = f"it beats the version that replaced version {rival} meanwhile, {where}"
    elif theirs is None:
        measure = evaluate_command(name, rival, split=criterion.split)
        why = f"version {rival}, champion, was never measured on {where}; `{measure}` with its --shards, then `{again}`"
    elif ours.n_of_n() != theirs.n_of_n():
        measure = evaluate_command(name, rival, split=criterion.split)
        why = (
            f"it scored {ours.n_of_n()} clips of {where}, version {rival}, champion, {theirs.n_of_n()}; "
            f"`{measure}` and the same of version {version} with the same --shards, then `{again}`"
        )
    else:
        mine, its = ours.metrics[criterion.metric], theirs.metrics[criterion.metric]
        verb = "beats" if mine > its else "does not beat"
        why = f"{criterion.metric} {mine:.4f} {verb} {its:.4f} of version {rival} on {ours.n_of_n()} clips, {where}"
    return Verdict(version=version, alias=alias, champion=after.champion, reason=f"version {version} is {alias}: {why}")


def _require_measurement(seen: _Registry, name: str, version: int, criterion: _Criterion) -> None:
    if version not in seen.tags:
        known = ", ".join(map(str, sorted(seen.tags))) or "none"
        raise RegistryError(f"{name} has no version {version}, only {known}")
    if seen.measurement(version, criterion) is None:
        measure = evaluate_command(name, version, split=criterion.split)
        raise RegistryError(
            f"{name} version {version} has no {criterion.metric} on split {criterion.split} of manifest "
            f"{criterion.manifest_hash[:12]}: `{measure}` with its --shards first"
        )


def _read_registry(client: MlflowClient, name: str) -> _Registry:
    tags: dict[int, Mapping[str, str]] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        tags.update({int(version.version): version.tags for version in page})
        token = page.token
        if not token:
            return _Registry(tags=tags, champion=_version_with(client, name, CHAMPION))


def _set_champion(client: MlflowClient, name: str, version: int, *, seen: _Registry) -> None:
    """Set the alias `champion`, and tag the version with the time."""
    now = datetime.now(UTC)
    if seen.champion is not None and _CHAMPION_SINCE not in seen.tags.get(seen.champion, {_CHAMPION_SINCE: ""}):
        # A person set it by hand: since when is not known, but it was so before this one.
        _set_tag(client, name, seen.champion, _CHAMPION_SINCE, _timestamp(now - timedelta(seconds=1)))
    _set_alias(client, name, CHAMPION, version)
    _set_tag(client, name, version, _CHAMPION_SINCE, _timestamp(now))


def _timestamp(moment: datetime) -> str:
    """A time of UTC that sorts as text."""
    return moment.isoformat(timespec="milliseconds")


def _champion_since(tags: Mapping[str, str]) -> datetime | None:
    """Since when a version was champion last, by its tag; None without one, or with one that nobody here wrote."""
    try:
        moment = datetime.fromisoformat(tags.get(_CHAMPION_SINCE, ""))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None and moment <= datetime.now(UTC) + _TOLERATED else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "a user without a name"


def _set_alias(client: MlflowClient, name: str, alias: str, version: int) -> None:
    _retry_once(partial(client.set_registered_model_alias, name, alias, str(version)))


def _set_tag(client: MlflowClient, name: str, version: int, key: str, value: str) -> None:
    _retry_once(partial(client.set_model_version_tag, name, str(version), key, value))


def _retry_once(write: Callable[[], object]) -> None:
    from mlflow.exceptions import MlflowException

    # Two jobs that write a row that was not there both insert it, and MLflow refuses the second. Now it is there.
    Retrying(retry=retry_if_exception_type(MlflowException), stop=stop_after_attempt(2), reraise=True)(write)


def _version_with(client: MlflowClient, name: str, alias: str) -> int | None:
    """The version that has the alias, which `search_model_versions` leaves out."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else int(version)
