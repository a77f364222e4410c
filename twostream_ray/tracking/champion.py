"""The aliases of a registered model: `champion` moves only to a version that beats it, whoever else promotes meanwhile.

MLflow's aliases are last write wins, with no compare-and-set. So each job first declares its version a contender (a
tag), then works out who should be champion from all recent contenders, writes that, and looks again until what stands
is what should stand. Whoever writes last has read all declarations made before; a later declarer has read what was
written. So the better version stays, on SQLite as on a server.
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
from twostream_ray.tracking.connection import (
    ANSWER_S,
    TrackingConfig,
    client_for,
    registry_errors,
    short_timeouts,
    within,
)
from twostream_ray.tracking.measurement import Measurement, measurement_from

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"

_logger = logging.getLogger(__name__)

_CONTENDS = "contends"
_CHAMPION_SINCE = "champion_since"
"""Tag of a version: when it last became champion, by which a rollback finds the one before."""
_ROLLED_BACK = "rolled_back"
"""Tag of a version that a person took back: it contends no more until it is promoted, or rolled back to, again."""
_CONTEST_SECONDS = 600.0
"""Contenders declared this long before another may still be writing; older ones are settled, and a champion that a
person has set by hand since then stands."""
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
    """What became of a promotion."""

    version: int
    """The version that was to be promoted."""
    alias: str
    """Its alias now: champion or challenger."""
    champion: int
    """The version that is champion now."""
    reason: str
    """Why, in a sentence with the numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Terms:
    """On what a version wants to be compared."""

    manifest_hash: str
    split: str
    metric: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Contender:
    version: int
    terms: _Terms
    declared: float
    """Seconds since the epoch, by the clock of its job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Registry:
    """One reading of a registered model."""

    tags: Mapping[int, Mapping[str, str]]
    """Of each version."""
    champion: int | None

    def measurement(self, version: int, terms: _Terms) -> Measurement | None:
        found = measurement_from(self.tags.get(version, {}), manifest_hash=terms.manifest_hash, split=terms.split)
        return found if found and terms.metric in found.metrics else None

    def taken_back(self, version: int) -> bool:
        return _ROLLED_BACK in self.tags[version]

    def champion_before(self) -> int | None:
        """The version that was champion last, of those that are not now and were not taken back."""
        since = {
            version: moment
            for version, tags in self.tags.items()
            if version != self.champion and not self.taken_back(version) and (moment := _moment(tags))
        }
        return max(since, key=lambda version: (since[version], version), default=None)

    def contenders(self, *, since: float) -> list[_Contender]:
        """Those declared since then on terms that they were measured on, oldest version first."""
        found = []
        for version, tags in sorted(self.tags.items()):
            if _CONTENDS not in tags or self.taken_back(version):
                continue
            try:
                stored = json_files.parse_json(
                    tags[_CONTENDS],
                    _DECLARATION,
                    where=f"tag {_CONTENDS} of version {version}",
                    what="a declaration of a contender",
                    way_out="the version does not contend; promote it, which writes the tag anew",
                    error=RegistryError,
                )
            except RegistryError as error:  # anybody may set a tag
                _logger.warning("%s", error)
                continue
            contender = _Contender(version=version, terms=_Terms(**stored["terms"]), declared=stored["declared"])
            # One from the future would contend for ever.
            recent = since <= contender.declared <= since + _CONTEST_SECONDS + _CLOCKS_DIFFER_SECONDS
            if recent and self.measurement(version, contender.terms) is not None:
                found.append(contender)
        return found


@within(ANSWER_S)
def promote(
    name: str, version: int, *, config: TrackingConfig, manifest_hash: str, split: str, metric: str = "top1"
) -> Verdict:
    """Make a version `champion` if it beats the present one on the same manifest and split, otherwise `challenger`.

    It beats it if its metric is higher and both scored equally many clips of equally many. The first measured version
    of a model is champion. A champion that was never measured on this manifest stays: evaluate it there
    (`record_measurement`) and promote again. Of versions promoted at once the best becomes champion, the oldest of
    equals.

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
    terms = _Terms(manifest_hash=manifest_hash, split=split, metric=metric)
    with (
        short_timeouts(),
        registry_errors(
            uri,
            wanted=f"promoting {name} version {version}",
            way_out="check the name and tracking.uri, then promote again",
        ),
    ):
        client = client_for(uri)
        before = _read(client, name)
        _demand_measurement(before, name, version, terms)
        now = time.time()
        declared = {"declared": now, "terms": {"manifest_hash": manifest_hash, "split": split, "metric": metric}}
        _tag(client, name, version, _CONTENDS, json.dumps(declared))
        if _ROLLED_BACK in before.tags[version]:
            client.delete_model_version_tag(name, str(version), _ROLLED_BACK)
        after = _settle(client, name, incumbent=before.champion, since=now - _CONTEST_SECONDS)
        _demand_measurement(after, name, version, terms)  # it may have been deleted meanwhile
        verdict = _verdict(before, after, version, terms)
        if verdict.alias == CHALLENGER:
            _point(client, name, CHALLENGER, version)
        elif _alias(client, name, CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
    return verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """What a rollback moved."""

    champion: int
    """The version that is champion now."""
    taken_back: int | None
    """The version that was; None where nothing moved or the model had no champion."""
    reason: str
    """What happened, in a sentence."""


@within(ANSWER_S)
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
        before = _read(client, name)
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
        # First the mark, then the alias: a promotion that reads in between leaves the one that is marked alone.
        if before.champion is not None:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            why = f": {because}" if because else ""
            mark = redact(f"{when} by {_user()}, to version {target}{why}")
            _tag(client, name, before.champion, _ROLLED_BACK, mark[:_TAG_LENGTH])
        if _ROLLED_BACK in before.tags[target]:
            client.delete_model_version_tag(name, str(target), _ROLLED_BACK)
        _set_champion(client, name, target, seen=before)
        if _alias(client, name, CHALLENGER) == target:
            client.delete_registered_model_alias(name, CHALLENGER)
    left = "which had none" if before.champion is None else f"in the place of version {before.champion}"
    return Rollback(
        champion=target, taken_back=before.champion, reason=f"version {target} is champion of {name}, {left}"
    )


def _settle(client: MlflowClient, name: str, *, incumbent: int | None, since: float) -> _Registry:
    """Write the rightful champion until a reading after the writing agrees; gives that reading."""
    for _ in range(_MOST_ROUNDS):
        seen = _read(client, name)
        rightful = incumbent if incumbent in seen.tags else None
        if rightful is not None and seen.taken_back(rightful):
            rightful = seen.champion  # a person rolled back meanwhile: what they chose is to be beaten
        for contender in seen.contenders(since=since):
            if rightful is None or _beats(seen, contender.version, rightful, contender.terms):
                rightful = contender.version
        if rightful is None or rightful == seen.champion:
            return seen
        _set_champion(client, name, rightful, seen=seen)
    raise RegistryError(f"champion of {name} kept moving while {_MOST_ROUNDS} rounds were tried: promote again later")


def _beats(seen: _Registry, challenger: int, champion: int, terms: _Terms) -> bool:
    """True if both were measured on these terms, on equally many clips, and the challenger's metric is higher."""
    ours, theirs = seen.measurement(challenger, terms), seen.measurement(champion, terms)
    if ours is None or theirs is None or ours.n_of_n() != theirs.n_of_n():
        return False
    return ours.metrics[terms.metric] > theirs.metrics[terms.metric]


def _verdict(before: _Registry, after: _Registry, version: int, terms: _Terms) -> Verdict:
    assert after.champion is not None  # noqa: S101  (else the version itself would be)
    alias = CHAMPION if after.champion == version else CHALLENGER
    rival = before.champion if alias == CHAMPION else after.champion
    where = f"split {terms.split} of manifest {terms.manifest_hash[:12]}"
    ours = after.measurement(version, terms)
    theirs = None if rival is None else after.measurement(rival, terms)
    assert ours is not None  # noqa: S101  (demanded above)
    if rival is None:
        why = "the model had none"
    elif rival == version:
        why = "it was so before"
    elif alias == CHAMPION and theirs is None:
        why = f"it beats the version that took the place of version {rival} meanwhile, {where}"
    elif theirs is None:
        why = f"version {rival}, champion, was never measured on {where}; evaluate it there, then promote again"
    elif ours.n_of_n() != theirs.n_of_n():
        why = (
            f"it scored {ours.n_of_n()} clips of {where}, version {rival}, champion, {theirs.n_of_n()}; "
            "evaluate both on the same clips"
        )
    else:
        mine, its = ours.metrics[terms.metric], theirs.metrics[terms.metric]
        verb = "beats" if mine > its else "does not beat"
        why = f"{terms.metric} {mine:.4f} {verb} {its:.4f} of version {rival} on {ours.n_of_n()} clips, {where}"
    return Verdict(version=version, alias=alias, champion=after.champion, reason=f"version {version} is {alias}: {why}")


def _demand_measurement(seen: _Registry, name: str, version: int, terms: _Terms) -> None:
    if version not in seen.tags:
        known = ", ".join(map(str, sorted(seen.tags))) or "none"
        raise RegistryError(f"{name} has no version {version}, only {known}")
    if seen.measurement(version, terms) is None:
        raise RegistryError(
            f"{name} version {version} has no {terms.metric} on split {terms.split} of manifest "
            f"{terms.manifest_hash[:12]}: evaluate it there first"
        )


def _read(client: MlflowClient, name: str) -> _Registry:
    tags: dict[int, Mapping[str, str]] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        tags.update({int(version.version): version.tags for version in page})
        token = page.token
        if not token:
            return _Registry(tags=tags, champion=_alias(client, name, CHAMPION))


def _set_champion(client: MlflowClient, name: str, version: int, *, seen: _Registry) -> None:
    """Make a version champion, on the record."""
    now = datetime.now(UTC)
    if seen.champion is not None and _CHAMPION_SINCE not in seen.tags.get(seen.champion, {_CHAMPION_SINCE: ""}):
        # A person set it by hand: since when is not known, but it was so before this one.
        _tag(client, name, seen.champion, _CHAMPION_SINCE, _written(now - timedelta(seconds=1)))
    _point(client, name, CHAMPION, version)
    _tag(client, name, version, _CHAMPION_SINCE, _written(now))


def _written(moment: datetime) -> str:
    """A time of UTC that sorts as text."""
    return moment.isoformat(timespec="milliseconds")


def _moment(tags: Mapping[str, str]) -> datetime | None:
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


def _point(client: MlflowClient, name: str, alias: str, version: int) -> None:
    _retry_once(partial(client.set_registered_model_alias, name, alias, str(version)))


def _tag(client: MlflowClient, name: str, version: int, key: str, value: str) -> None:
    _retry_once(partial(client.set_model_version_tag, name, str(version), key, value))


def _retry_once(write: Callable[[], object]) -> None:
    from mlflow.exceptions import MlflowException

    # Two jobs that write a row that was not there both insert it, and MLflow refuses the second. Now it is there.
    Retrying(retry=retry_if_exception_type(MlflowException), stop=stop_after_attempt(2), reraise=True)(write)


def _alias(client: MlflowClient, name: str, alias: str) -> int | None:
    """The version that has the alias; `search_model_versions` does not tell."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else int(version)
