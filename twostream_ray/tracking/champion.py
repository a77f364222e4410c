"""Champion-challenger promotion and rollback of a registered model's MLflow aliases, safe with concurrent jobs.

`champion` moves only to a version that beats the current one. MLflow's aliases are last-write-wins, without
compare-and-set. So each job first declares its version a candidate (a tag), then determines the best of all recent
candidates, sets the alias to it, and reads again until the alias is right. The last writer has read all earlier
declarations, and a later declarer has read what was written, so the better version stays, on SQLite as on a server.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from twostream_ray.errors import RegistryError
from twostream_ray.redaction import redact
from twostream_ray.tracking.connection import ANSWER_S, client_for, registry_errors, short_timeouts, with_deadline
from twostream_ray.tracking.measurement import Measurement, evaluate_command, promote_command, rollback_command
from twostream_ray.tracking.registered_model import (
    CANDIDATE_TAG,
    CHALLENGER,
    CHAMPION,
    CHAMPION_SINCE_TAG,
    ROLLED_BACK_TAG,
    Criterion,
    RegisteredModel,
    read_registered_model,
    version_with,
)
from twostream_ray.tracking.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CONCURRENT_SECONDS = 600.0
"""Jobs of candidates declared this recently may still be writing; older ones are done, so that a champion set by hand
since then stays."""
_MOST_ROUNDS = 20
_CHECK = "check tracking.model_name and tracking.uri"
_TAG_LENGTH = 5000
"""MLflow's limit for a tag of a version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Result of a promotion."""

    version: int
    """The version to be promoted."""
    alias: str
    """Its new alias: champion or challenger."""
    champion: int
    """The current champion."""
    reason: str
    """The reason, in a sentence with the metrics."""
    rival: int | None = None
    """The version that it was compared with; None if it was not compared."""
    measured: Measurement | None = None
    """Measurement of the version in the comparison."""
    rival_measured: Measurement | None = None
    """Measurement of the rival in the comparison."""


@with_deadline(ANSWER_S)
def promote(
    name: str,
    version: int,
    *,
    config: TrackingConfig,
    manifest_hash: str,
    split: str,
    metric: str = "top1",
    shards: str | None = None,
    obstacle: str = "",
) -> Verdict:
    """Make a version `champion` if it beats the current one on the same manifest and split, otherwise `challenger`.

    It beats it if its metric is higher and both were scored on the same numbers of clips. The first measured version of
    a model is champion. A champion that was never measured on this manifest stays: measure it there with `twostream
    evaluate`, then compare again with `twostream promote`. Of versions promoted concurrently the best becomes champion,
    the oldest of equals.

    Args:
        name: name of the registered model.
        version: the version to promote; it has a measurement.
        config: the registry.
        manifest_hash: manifest of the data to compare on.
        split: split of the data.
        metric: name of the metric; higher is better.
        shards: URI of the data, for commands in the verdict.
        obstacle: why the current champion cannot be measured on the data, for the verdict; empty if not tried.

    Raises:
        RegistryError: there is no such version or measurement, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    criterion = Criterion(manifest_hash=manifest_hash, split=split, metric=metric)
    again = promote_command(name, version, manifest_hash=manifest_hash, split=split, config=config)
    measure = partial(evaluate_command, name, split=split, shards=shards, config=config)
    hints = _Hints(measure=measure, again=again, obstacle=obstacle, name=name, config=config)
    with (
        short_timeouts(),
        registry_errors(uri, wanted=f"promoting {name} version {version}", way_out=f"{_CHECK}, then `{again}`"),
    ):
        client = client_for(uri)
        before = read_registered_model(client, name)
        _require_measurement(before, name, version, criterion, measure=measure)
        now = time.time()
        declared = {"declared": now, "terms": {"manifest_hash": manifest_hash, "split": split, "metric": metric}}
        _set_tag(client, name, version, CANDIDATE_TAG, json.dumps(declared))
        if ROLLED_BACK_TAG in before.tags[version]:
            client.delete_model_version_tag(name, str(version), ROLLED_BACK_TAG)
        after = _set_best_candidate(client, name, incumbent=before.champion, now=now, again=again)
        _require_measurement(after, name, version, criterion, measure=measure)  # it may have been deleted meanwhile
        verdict = _verdict(before, after, version, criterion, hints=hints)
        if verdict.alias == CHALLENGER:
            _set_alias(client, name, CHALLENGER, version)
        elif version_with(client, name, CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
    return verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """Result of a rollback."""

    champion: int
    """The current champion."""
    taken_back: int | None
    """The previous champion; None if nothing changed or the model had none."""
    reason: str
    """What happened, in a sentence."""


@with_deadline(ANSWER_S)
def rollback(name: str, *, config: TrackingConfig, to: int | None = None, because: str = "") -> Rollback:
    """Set `champion` back to the previous champion, or to a named version; rolling back again goes further back.

    The replaced version is tagged `rolled_back` with time, user and reason: it becomes champion again only if it is
    itself promoted, or rolled back to.

    Args:
        name: name of the registered model.
        config: the registry.
        to: the version to make champion; by default the previous champion.
        because: the reason, stored in the tag.

    Raises:
        RegistryError: there is no such model or version, no earlier champion is recorded, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    wanted = f"rolling back {name}" + (f" to version {to}" if to else "")
    with short_timeouts(), registry_errors(uri, wanted=wanted, way_out=_CHECK):
        client = client_for(uri)
        before = read_registered_model(client, name)
        known = ", ".join(map(str, sorted(before.tags))) or "none"
        if to is not None and to not in before.tags:
            raise RegistryError(f"{name} has no version {to} to roll back to, only {known}")
        target = to or before.champion_before()
        if target is None:
            raise RegistryError(
                f"no champion of {name} is recorded before {before.champion or 'now'}: name one of {known} with --to"
            )
        if target == before.champion:
            return Rollback(champion=target, taken_back=None, reason=f"version {target} is champion already")
        # First the tag, then the alias: a promotion that reads in between ignores the tagged version.
        if before.champion is not None:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            why = f": {because}" if because else ""
            note = redact(f"{when} by {_user()}, to version {target}{why}")
            _set_tag(client, name, before.champion, ROLLED_BACK_TAG, note[:_TAG_LENGTH])
        if ROLLED_BACK_TAG in before.tags[target]:
            client.delete_model_version_tag(name, str(target), ROLLED_BACK_TAG)
        _set_champion(client, name, target, seen=before)
        if version_with(client, name, CHALLENGER) == target:
            client.delete_registered_model_alias(name, CHALLENGER)
    left = "which had none" if before.champion is None else f"instead of version {before.champion}"
    return Rollback(
        champion=target, taken_back=before.champion, reason=f"version {target} is champion of {name}, {left}"
    )


def _set_best_candidate(
    client: MlflowClient, name: str, *, incumbent: int | None, now: float, again: str
) -> RegisteredModel:
    """Set `champion` to the best candidate until a reading after the write agrees; returns that reading."""
    for _ in range(_MOST_ROUNDS):
        seen = read_registered_model(client, name)
        best = incumbent if incumbent in seen.tags else None
        if best is not None and seen.is_rolled_back(best):
            best = seen.champion  # rolled back meanwhile: the version rolled back to has to be beaten
        for candidate in seen.candidates(since=now - _CONCURRENT_SECONDS, now=now):
            if best is None or _beats(seen, candidate.version, best, candidate.criterion):
                best = candidate.version
        if best is None or best == seen.champion:
            return seen
        _set_champion(client, name, best, seen=seen)
    raise RegistryError(f"the champion of {name} changed in each of {_MOST_ROUNDS} attempts: run `{again}` later")


def _beats(seen: RegisteredModel, challenger: int, champion: int, criterion: Criterion) -> bool:
    """True if both were measured on this criterion, on equally many clips, and the challenger's metric is higher."""
    ours, theirs = seen.measurement(challenger, criterion), seen.measurement(champion, criterion)
    if ours is None or theirs is None or ours.n_of_n() != theirs.n_of_n():
        return False
    return ours.metrics[criterion.metric] > theirs.metrics[criterion.metric]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hints:
    """Commands and reasons for a verdict."""

    measure: Callable[[int], str]
    again: str
    obstacle: str
    name: str
    config: TrackingConfig


def _verdict(
    before: RegisteredModel, after: RegisteredModel, version: int, criterion: Criterion, *, hints: _Hints
) -> Verdict:
    assert after.champion is not None  # noqa: S101  (else the version itself would be)
    alias = CHAMPION if after.champion == version else CHALLENGER
    rival = before.champion if alias == CHAMPION else after.champion
    where = f"split {criterion.split} of manifest {criterion.manifest_hash[:12]}"
    ours = after.measurement(version, criterion)
    theirs = None if rival is None else after.measurement(rival, criterion)
    assert ours is not None  # noqa: S101  (required above)
    if rival is None:
        why = "the model had none"
    elif rival == version:
        why = "it already was"
    elif alias == CHAMPION and theirs is None:
        why = f"it beats the version that replaced version {rival} meanwhile, {where}"
    elif theirs is None and hints.obstacle:
        why = f"version {rival}, champion, cannot be measured on {where}: {hints.obstacle}"
        force = rollback_command(hints.name, version, config=hints.config)
        why += f"; to make this one champion anyway: `{force}`"
    elif theirs is None:
        why = (
            f"version {rival}, champion, was never measured on {where}: `{hints.measure(rival)}`, then `{hints.again}`"
        )
    elif ours.n_of_n() != theirs.n_of_n():
        why = (
            f"it scored {ours.n_of_n()} clips of {where}, version {rival}, champion, {theirs.n_of_n()}: "
            f"`{hints.measure(rival)}`, `{hints.measure(version)}`, then `{hints.again}`"
        )
    else:
        mine, its = ours.metrics[criterion.metric], theirs.metrics[criterion.metric]
        verb = "beats" if mine > its else "does not beat"
        why = f"{criterion.metric} {mine:.4f} {verb} {its:.4f} of version {rival} on {ours.n_of_n()} clips, {where}"
    compared = rival not in (None, version) and theirs is not None and ours.n_of_n() == theirs.n_of_n()
    return Verdict(
        version=version,
        alias=alias,
        champion=after.champion,
        reason=f"version {version} is {alias}: {why}",
        rival=rival if compared else None,
        measured=ours if compared else None,
        rival_measured=theirs if compared else None,
    )


def _require_measurement(
    seen: RegisteredModel, name: str, version: int, criterion: Criterion, *, measure: Callable[[int], str]
) -> None:
    if version not in seen.tags:
        known = ", ".join(map(str, sorted(seen.tags))) or "none"
        raise RegistryError(f"{name} has no version {version}, only {known}")
    if seen.measurement(version, criterion) is None:
        raise RegistryError(
            f"{name} version {version} has no {criterion.metric} on split {criterion.split} of manifest "
            f"{criterion.manifest_hash[:12]}: `{measure(version)}` first"
        )


def _set_champion(client: MlflowClient, name: str, version: int, *, seen: RegisteredModel) -> None:
    """Set the alias `champion`, and tag the version with the time."""
    now = datetime.now(UTC)
    if seen.champion is not None and CHAMPION_SINCE_TAG not in seen.tags.get(seen.champion, {CHAMPION_SINCE_TAG: ""}):
        # It was set by hand at an unknown time, but before this one.
        _set_tag(client, name, seen.champion, CHAMPION_SINCE_TAG, _timestamp(now - timedelta(seconds=1)))
    _set_alias(client, name, CHAMPION, version)
    _set_tag(client, name, version, CHAMPION_SINCE_TAG, _timestamp(now))


def _timestamp(moment: datetime) -> str:
    """A time of UTC that sorts as text."""
    return moment.isoformat(timespec="milliseconds")


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

    # If two jobs write a new row at once, both insert it and MLflow refuses the second; the row exists on a retry.
    Retrying(retry=retry_if_exception_type(MlflowException), stop=stop_after_attempt(2), reraise=True)(write)
