"""A run's or search's folder: whose it is, and the data that it began with, by a copy of their manifest and index.

Below `<storage>/<name>/data/`: manifest.json and index.parquet as the shard set had them when the run began. Shard
files are content-addressed, so a run sees the same clips under the same labels whatever is ingested meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.runs.experiment import without_free_settings
from twostream_ray.settings.parser import refuse_changed
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import read_json, record
from twostream_ray.tracking.lineage import MANIFEST
from twostream_ray.tracking.outbox import Outbox

_FOLDER = "data"
_FILES = ("index.parquet", "manifest.json")
_SHOWN = 4

_log = logging.getLogger(__name__)


def refuse_foreign(uri: str, *, mark: str, what: str) -> None:
    """Refuse a folder that holds anything unless the file `mark` says that `what` ('run "x"') has it already.

    Raises:
        ConfigError: it is somebody else's, or of another verb.
    """
    if storage.exists(storage.join(uri, mark)) or not storage.exists(uri):
        return
    if storage.is_s3(uri):
        names = [path for path, _ in storage.list_files(uri)]
    elif Path(uri).is_dir():
        names = sorted(path.name for path in Path(uri).iterdir())
    else:
        names = [f"nothing, as it is no folder, {Path(uri).name}"]
    # What a start that was killed at once leaves behind.
    if others := [name for name in names if name != lease.FILE and not name.endswith(".partial")]:
        raise ConfigError(
            f"{what} wants the folder {uri} to itself, it holds {others[0]} but no {mark}: choose another --name or "
            "--storage"
        )


def begun_with(path: str, *, mark: str, settings: Mapping[str, Any], what: str) -> bool:
    """Whether `what` ('run "x"') was begun in `place`, as the file `mark` says, which holds its settings.

    Raises:
        ConfigError: it was begun with others, or the file is damaged.
    """
    uri = storage.join(path, mark)
    if not storage.exists(uri):
        return False
    before = read_json(
        uri,
        record({"name": {"type": "string"}, "data": {"type": "object"}}, others=True),
        what=f"the settings of {what}",
        way_out=f"choose another --name, or delete {path}",
        error=ConfigError,
    )
    refuse_changed(without_free_settings(before), settings, what=what, uri=path)
    return True


def kept_data(path: str, *, shards: str) -> ShardSet | None:
    """The shard set as it was when the run in `place` began; None if that was not written down.

    Raises:
        ShardError: what was written down is damaged.
    """
    kept = storage.join(path, _FOLDER)
    if not storage.exists(storage.join(kept, _FILES[-1])):
        return None
    return replace(open_shards(kept), uri=storage.absolute(shards))


def data_of(uri: str, *, shards: str, what: str) -> ShardSet:
    """The data of `what` ('run "x"') in `place`: those that it began with, or, before it begins, those that there are.

    A shard set that has got more clips meanwhile still has the others' files: the run keeps to the clips that it began
    with, and that is said in a line.

    Raises:
        ConfigError: classes or flow contract have changed, or shards that the run began with are gone.
        ShardError: the shards are missing or damaged.
    """
    now = open_shards(shards)
    then = kept_data(uri, shards=shards)
    if then is None:
        _refuse_other_manifest(uri, now, what=what)
        return now
    if then.hash == now.hash:
        return then
    begun = f"{what} began with manifest {then.hash[:12]} of {shards}, which holds {now.hash[:12]} by now"
    way_out = "choose another --name, or ingest the earlier data again"
    if changed := _changed(then, now):
        raise ConfigError(f"{begun}: {changed}; a run keeps to the data that it began with: {way_out}")
    files = list(zip(then.shard_names, then.shard_sha256, strict=True))
    there = set(zip(now.shard_names, now.shard_sha256, strict=True))
    if gone := [name for name, sha256 in files if (name, sha256) not in there]:
        raise ConfigError(
            f"{begun}: {len(gone)} of the {len(files)} shards that it began with are gone ({gone[0]}): {way_out}"
        )
    _log.warning(
        "%s: the other clips are left out, %d instead of %d; to have them too choose another --name",
        begun,
        len(then.index),
        len(now.index),
    )
    return then


def keep_data(path: str, shard_set: ShardSet, *, what: str) -> None:
    """Write down which data a run begins with; nothing if that was done before.

    Raises:
        ShardError: the shard set has been changed since it was opened.
        StorageError: the place cannot be written.
    """
    kept = storage.join(path, _FOLDER)
    if storage.exists(storage.join(kept, _FILES[-1])):
        return
    contents = {name: storage.read_bytes(storage.join(shard_set.uri, name)) for name in _FILES}
    if hashlib.sha256(contents[_FILES[-1]]).hexdigest() != shard_set.hash:
        raise ShardError(
            f"{what} was to begin with manifest {shard_set.hash[:12]} of {shard_set.uri}, an ingest has just written "
            "another: run the same command again when it has ended"
        )
    for name, content in contents.items():
        storage.write_bytes(storage.join(kept, name), content)


def explained(error: ShardError, shard_set: ShardSet, *, what: str) -> ShardError:
    """The error of a shard that cannot be read, with the reason if an ingest has changed the set meanwhile."""
    try:
        now = open_shards(shard_set.uri).hash
    except ShardError:
        now = "none"
    if now == shard_set.hash:
        return error
    return ShardError(
        f"{what} keeps to manifest {shard_set.hash[:12]} of {shard_set.uri}, which an ingest has meanwhile replaced by "
        f"{now[:12]}, and shards are gone ({str(error).partition(':')[0]}): choose another --name, or ingest the "
        "earlier data again and run the same command"
    )


def _refuse_other_manifest(path: str, now: ShardSet, *, what: str) -> None:
    """Of a run that an earlier version began only the tags of its MLflow run tell the data."""
    identity = Outbox(run_uri=path).identity()
    if identity is None:
        return
    then = identity.tags.get(MANIFEST)
    if then is None:
        _log.warning(
            "%s in %s does not say which data it began with: it is taken to be manifest %s of %s",
            *(what, path, now.hash[:12], now.uri),
        )
    elif then != now.hash:
        raise ConfigError(
            f"{what} began with manifest {then[:12]}, {now.uri} holds {now.hash[:12]} by now: choose another --name, "
            "or ingest the earlier data again"
        )


def _changed(then: ShardSet, now: ShardSet) -> str:
    """What makes two shard sets another task, in words; nothing if they differ in their clips alone."""
    if then.contract != now.contract:
        names = [field.name for field in fields(then.contract)]
        before, after = ({name: getattr(one.contract, name) for name in names} for one in (then, now))
        different = [name for name in names if before[name] != after[name]]
        return ", ".join(f"its flow {name} was {before[name]}, is {after[name]}" for name in different)
    if (then.classes, then.head_classes) == (now.classes, now.head_classes):
        return ""
    if set(then.classes) == set(now.classes):
        return "its classes are in another order or of other data sets"
    words = []
    for name, ones, others in (("was", then.classes, now.classes), ("is", now.classes, then.classes)):
        if only := [one for one in ones if one not in set(others)]:
            more = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
            words.append(f"{', '.join(only[:_SHOWN])}{more} {name} among them")
    return f"it had {len(then.classes)} classes, has {len(now.classes)} ({'; '.join(words)})"
