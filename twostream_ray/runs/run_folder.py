"""Run folder of a training or search: ownership, stored settings, and a snapshot of the data's manifest and index.

`<storage>/<name>/data/` has manifest.json and index.parquet as they were when the run started. Shard files are
content-addressed, so a run sees the same clips under the same labels whatever is ingested meanwhile. A run that failed
before its first checkpoint may be started again with other settings or data.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.runs.experiment import ExperimentConfig, keeping_device_settings, without_free_settings
from twostream_ray.settings.parser import changed_settings, refuse_changed
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import read_json, record
from twostream_ray.tracking.lineage import MANIFEST
from twostream_ray.tracking.outbox import Outbox

INIT = "init"
"""Subfolder of a run's folder with the weights that it starts from."""

CHECKPOINT_NAME = r"epoch-[0-9]{1,9}(-step-[0-9]{1,9})?"
"""Pattern of checkpoint folders in a run's folder."""

_LEARNT = re.compile(rf"(.*/)?({CHECKPOINT_NAME}/state\.json|report\.json)")
"""Files whose existence means that a run, or a trial of a search, has a checkpoint or a report."""
_NO_EPOCH = b'"history": []'
"""Part of the record of a trial that has finished no epoch."""
_FILES = ("index.parquet", "manifest.json")
_SHOWN = 4

_Experiment = TypeVar("_Experiment", bound=ExperimentConfig)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of a training run: names of its files, and the data that the run is bound to."""

    uri: str
    """A directory or s3:// prefix."""
    what: str
    """The run in words, for messages: run 'x'."""

    kind: ClassVar[str] = "run"
    """Word for it in messages."""
    takes_more_epochs: ClassVar[bool] = True
    """Whether training.epochs may be raised on a resume."""
    settings_name: ClassVar[str] = "experiment.json"
    """Name of the settings file, which identifies the kind of run."""

    @classmethod
    def of(cls, config: ExperimentConfig) -> Self:
        """The folder of the run `config.name` below `config.storage`."""
        uri = storage.join(storage.absolute(config.storage), config.name)
        return cls(uri=uri, what=f"{cls.kind} {config.name!r}")

    @property
    def settings(self) -> str:
        """File with the settings that it was started with."""
        return storage.join(self.uri, self.settings_name)

    @property
    def report(self) -> str:
        """File with the report, written when the run has finished."""
        return storage.join(self.uri, "report.json")

    @property
    def published(self) -> str:
        """The result of its publication: version and verdict in the registry."""
        return storage.join(self.uri, "published.json")

    @property
    def evaluation(self) -> str:
        """The directory of its evaluation."""
        return storage.join(self.uri, "evaluation")

    @property
    def data(self) -> str:
        """The directory with manifest and index of the shard set that it started with."""
        return storage.join(self.uri, "data")

    def checkpoint(self, name: str) -> str:
        """The checkpoint with this name."""
        return storage.join(self.uri, name)

    def refuse_foreign(self) -> None:
        """Refuse a folder with files but without the settings of a run of this kind.

        Raises:
            ConfigError: another program or verb uses the folder.
        """
        if storage.exists(self.settings) or not storage.exists(self.uri):
            return
        if storage.is_s3(self.uri):
            names = [path for path, _ in storage.list_files(self.uri)]
        elif Path(self.uri).is_dir():
            names = sorted(path.name for path in Path(self.uri).iterdir())
        else:
            names = [f"nothing, as it is not a folder, {Path(self.uri).name}"]
        # Files that may exist if the run was killed at its start.
        own = (lease.FILE, INIT)
        if others := [name for name in names if name.partition("/")[0] not in own and not name.endswith(".partial")]:
            raise ConfigError(
                f"{self.what} needs the folder {self.uri} for itself, but it has {others[0]} and no "
                f"{self.settings_name}: choose another --name or --storage"
            )

    def keeping_device_settings(self, config: _Experiment) -> _Experiment:
        """The settings with `auto` replaced by the values that the run was started with.

        Raises:
            ConfigError: the file with its settings is damaged.
        """
        before = self._settings_before()
        return config if before is None or not self.has_checkpoint() else keeping_device_settings(config, before)

    def has_checkpoint(self) -> bool:
        """Whether it, or a trial in it, has a checkpoint or a report; otherwise its settings and data may change.

        Raises:
            StorageError: the folder cannot be read.
        """
        if not storage.exists(self.settings):
            return False
        return any(_LEARNT.fullmatch(path) for path, _ in storage.list_files(self.uri))

    def _settings_before(self) -> dict[str, Any] | None:
        if not storage.exists(self.settings):
            return None
        values: dict[str, Any] = read_json(
            self.settings,
            record({"name": {"type": "string"}, "data": {"type": "object"}}, others=True),
            what=f"the settings of {self.what}",
            way_out=f"choose another --name, or delete {self.uri}",
            error=ConfigError,
        )
        return values

    def begun_with(self, settings: Mapping[str, Any]) -> bool:
        """Whether the run exists and has a checkpoint; refuses other settings than it was started with.

        training.epochs may be higher.

        Raises:
            ConfigError: it was started with other settings, or the file is damaged.
        """
        before = self._settings_before()
        if before is None or not self.has_checkpoint():
            return False
        if self.takes_more_epochs:
            before = self._with_more_epochs(before, settings)
        refuse_changed(without_free_settings(before), settings, what=self.what, uri=self.uri)
        return True

    def _with_more_epochs(self, before: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that the run was started with, with the epochs of `settings` if these are more."""
        training, wanted = before.get("training"), settings.get("training", {}).get("epochs")
        begun = training.get("epochs") if isinstance(training, dict) else None
        if not isinstance(training, dict) or not isinstance(begun, int) or not isinstance(wanted, int):
            return before
        if wanted < begun:
            raise ConfigError(
                f"{self.what} was started with training.epochs={begun}, got {wanted}: a run may get more epochs under "
                "its name, not fewer; choose another --name for a shorter one"
            )
        return before | {"training": training | {"epochs": wanted}}

    def is_another(self, settings: Mapping[str, Any], shard_set: ShardSet | None = None) -> bool:
        """Whether an earlier start without a checkpoint had other settings or other data than these.

        Raises:
            ConfigError: the file with its settings is damaged.
        """
        before = self._settings_before()
        if before is None or self.has_checkpoint():
            return False
        if shard_set is not None and self.stored_hash() not in (None, shard_set.hash):
            return True
        return bool(changed_settings(without_free_settings(before), settings))

    def stored_hash(self) -> str | None:
        """Hash of the stored manifest; None if there is none."""
        kept = storage.join(self.data, _FILES[-1])
        return hashlib.sha256(storage.read_bytes(kept)).hexdigest() if storage.exists(kept) else None

    def stored_data(self, *, shards: str) -> ShardSet | None:
        """The shard set as it was when the run started; None if it was not stored.

        Raises:
            ShardError: the stored manifest or index is damaged.
        """
        if not storage.exists(storage.join(self.data, _FILES[-1])):
            return None
        return replace(open_shards(self.data), uri=storage.absolute(shards))

    def data_of(self, shards: str) -> ShardSet:
        """The run's data: those that it started with, or for a new run the current ones.

        If clips were added meanwhile, the run keeps to those that it started with, and a warning is logged.

        Raises:
            ConfigError: classes or flow contract have changed, or shards that the run started with are missing.
            ShardError: the shards are missing or damaged.
        """
        now = open_shards(shards)
        if storage.exists(self.settings) and not self.has_checkpoint():
            return now
        then = self.stored_data(shards=shards)
        if then is None:
            self._refuse_other_manifest(now)
            return now
        if then.hash == now.hash:
            return then
        begun = f"{self.what} began with manifest {then.hash[:12]} of {shards}, which now has {now.hash[:12]}"
        way_out = "choose another --name, or ingest the earlier data again"
        if changed := _changed(then, now):
            raise ConfigError(f"{begun}: {changed}; a run cannot change its data: {way_out}")
        files = list(zip(then.shard_names, then.shard_sha256, strict=True))
        there = set(zip(now.shard_names, now.shard_sha256, strict=True))
        if gone := [name for name, sha256 in files if (name, sha256) not in there]:
            raise ConfigError(
                f"{begun}: {len(gone)} of the {len(files)} shards that it began with are gone ({gone[0]}): {way_out}"
            )
        _log.warning(
            "%s: the added clips are left out, %d instead of %d are used; to use them too choose another --name",
            begun,
            len(then.index),
            len(now.index),
        )
        return then

    def keep_data(self, shard_set: ShardSet) -> None:
        """Store manifest and index of the data that a run starts with, unless they are stored already.

        Raises:
            ShardError: the shard set has been changed since it was opened.
            StorageError: the folder cannot be written.
        """
        if self.stored_hash() == shard_set.hash:
            return
        self._manifest_of(shard_set)
        with storage.on_disk(storage.join(shard_set.uri, _FILES[0])) as local:  # the index of a large set has gigabytes
            storage.write_file(storage.join(self.data, _FILES[0]), local)
        # Read again, as the index may have been replaced meanwhile; the manifest written last makes the copy valid.
        storage.write_bytes(storage.join(self.data, _FILES[-1]), self._manifest_of(shard_set))

    def _manifest_of(self, shard_set: ShardSet) -> bytes:
        content = storage.read_bytes(storage.join(shard_set.uri, _FILES[-1]))
        if hashlib.sha256(content).hexdigest() != shard_set.hash:
            raise ShardError(
                f"{self.what} was to start with manifest {shard_set.hash[:12]} of {shard_set.uri}, but an ingest has "
                "just written another: run the same command again when it has ended"
            )
        return content

    def explained(self, error: ShardError, shard_set: ShardSet) -> ShardError:
        """The error of an unreadable shard, with the reason if an ingest has changed the set meanwhile."""
        try:
            now = open_shards(shard_set.uri).hash
        except ShardError:
            now = "none"
        if now == shard_set.hash:
            return error
        return ShardError(
            f"{self.what} uses manifest {shard_set.hash[:12]} of {shard_set.uri}, which an ingest has meanwhile "
            f"replaced by {now[:12]}, and shards are gone ({str(error).partition(':')[0]}): choose another --name, or "
            "ingest the earlier data again and run the same command"
        )

    def _refuse_other_manifest(self, now: ShardSet) -> None:
        """Check the manifest of a run of an earlier version, which only the tags of its MLflow run name."""
        identity = Outbox(run_uri=self.uri).identity()
        if identity is None:
            return
        then = identity.tags.get(MANIFEST)
        if then is None:
            _log.warning(
                "%s in %s has no record of the data it started with: assuming manifest %s of %s",
                *(self.what, self.uri, now.hash[:12], now.uri),
            )
        elif then != now.hash:
            raise ConfigError(
                f"{self.what} began with manifest {then[:12]}, {now.uri} now has {now.hash[:12]}: choose another "
                "--name, or ingest the earlier data again"
            )


@dataclass(frozen=True, kw_only=True)
class SearchFolder(RunFolder):
    """The folder of a search, which contains the folders of its trials' runs."""

    kind: ClassVar[str] = "search"
    takes_more_epochs: ClassVar[bool] = False
    settings_name: ClassVar[str] = "search.json"

    def has_checkpoint(self) -> bool:
        """Whether a trial has finished an epoch according to its record, or has a checkpoint."""
        trials = storage.join(self.uri, "trials")
        if not storage.exists(self.settings):
            return False
        records = list(storage.list_files(trials)) if storage.exists(trials) else []
        # A damaged record is reported where it is read.
        if any(_NO_EPOCH not in storage.read_bytes(storage.join(trials, path)) for path, _ in records):
            return True
        return super().has_checkpoint()

    def trial(self, name: str) -> RunFolder:
        """The folder of the training run of the trial with this name."""
        return RunFolder(uri=storage.join(self.uri, name), what=f"{RunFolder.kind} {name!r}")


def _changed(then: ShardSet, now: ShardSet) -> str:
    """Differences of flow contract or classes, in words; "" if two shard sets differ only in their clips."""
    if then.contract != now.contract:
        names = [field.name for field in fields(then.contract)]
        before, after = ({name: getattr(one.contract, name) for name in names} for one in (then, now))
        different = [name for name in names if before[name] != after[name]]
        return ", ".join(f"its flow {name} was {before[name]}, is {after[name]}" for name in different)
    if (then.classes, then.head_classes) == (now.classes, now.head_classes):
        return ""
    if set(then.classes) == set(now.classes):
        return "its classes are in another order or belong to other data sets"
    words = []
    for name, ones, others in (("was", then.classes, now.classes), ("is", now.classes, then.classes)):
        if only := [one for one in ones if one not in set(others)]:
            more = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
            words.append(f"{', '.join(only[:_SHOWN])}{more} {name} among them")
    return f"it had {len(then.classes)} classes, has {len(now.classes)} ({'; '.join(words)})"
