"""A run's or search's folder: whose it is, and the data that it began with, by a copy of their manifest and index.

Below `<storage>/<name>/data/`: manifest.json and index.parquet as the shard set had them when the run began. Shard
files are content-addressed, so a run sees the same clips under the same labels whatever is ingested meanwhile.
A run that failed before its first checkpoint has learnt nothing, and is bound neither to settings nor to data.
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
"""Folder of the weights that a run starts from, within a run's."""

CHECKPOINT_NAME = r"epoch-[0-9]{1,9}(-step-[0-9]{1,9})?"
"""Folders of checkpoints, within a run's; only what is called so is ever taken for one."""

_LEARNT = re.compile(rf"(.*/)?({CHECKPOINT_NAME}/state\.json|report\.json)")
"""Files of a run, or of a trial of a search, that has something to resume from or to report."""
_NO_EPOCH = b'"history": []'
"""In the record of a trial that has ended no epoch."""
_FILES = ("index.parquet", "manifest.json")
_SHOWN = 4

_Experiment = TypeVar("_Experiment", bound=ExperimentConfig)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of a training run: the names of its files, and the data that the run keeps to."""

    uri: str
    """A directory or s3:// prefix."""
    what: str
    """The run in words, for messages: run 'x'."""

    kind: ClassVar[str] = "run"
    """Its word in messages."""
    takes_more_epochs: ClassVar[bool] = True
    """Whether training.epochs may be more than it was begun with."""
    settings_name: ClassVar[str] = "experiment.json"
    """The file that marks the folder as taken by this kind of run."""

    @classmethod
    def of(cls, config: ExperimentConfig) -> Self:
        """The folder of the run `config.name` below `config.storage`."""
        uri = storage.join(storage.absolute(config.storage), config.name)
        return cls(uri=uri, what=f"{cls.kind} {config.name!r}")

    @property
    def settings(self) -> str:
        """The settings that it was begun with."""
        return storage.join(self.uri, self.settings_name)

    @property
    def report(self) -> str:
        """The report that ends it."""
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
        """The directory with manifest and index of the shard set that it began with."""
        return storage.join(self.uri, "data")

    def checkpoint(self, name: str) -> str:
        """The checkpoint with this name."""
        return storage.join(self.uri, name)

    def refuse_foreign(self) -> None:
        """Refuse a folder that holds files, but not the settings of a run of this kind.

        Raises:
            ConfigError: it belongs to something else, or to another verb's run.
        """
        if storage.exists(self.settings) or not storage.exists(self.uri):
            return
        if storage.is_s3(self.uri):
            names = [path for path, _ in storage.list_files(self.uri)]
        elif Path(self.uri).is_dir():
            names = sorted(path.name for path in Path(self.uri).iterdir())
        else:
            names = [f"nothing, as it is no folder, {Path(self.uri).name}"]
        # What a start that was killed at once leaves behind.
        own = (lease.FILE, INIT)
        if others := [name for name in names if name.partition("/")[0] not in own and not name.endswith(".partial")]:
            raise ConfigError(
                f"{self.what} wants the folder {self.uri} to itself, it holds {others[0]} but no "
                f"{self.settings_name}: choose another --name or --storage"
            )

    def keeping_device_settings(self, config: _Experiment) -> _Experiment:
        """The settings with what the run was begun with in place of `auto`, where it wrote down more than that.

        Raises:
            ConfigError: the file with its settings is damaged.
        """
        before = self._settings_before()
        return config if before is None or not self.has_learnt() else keeping_device_settings(config, before)

    def has_learnt(self) -> bool:
        """Whether it holds a checkpoint or a report, its trials' included: what has learnt nothing binds nothing.

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
        """Whether the run was begun and has learnt something, as the file with its settings and its checkpoints say.

        training.epochs may have become more.

        Raises:
            ConfigError: it was begun with others, or the file is damaged.
        """
        before = self._settings_before()
        if before is None or not self.has_learnt():
            return False
        if self.takes_more_epochs:
            before = self._with_more_epochs(before, settings)
        refuse_changed(without_free_settings(before), settings, what=self.what, uri=self.uri)
        return True

    def _with_more_epochs(self, before: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that the run was begun with, with the epochs that are wanted now where these are more."""
        training, wanted = before.get("training"), settings.get("training", {}).get("epochs")
        begun = training.get("epochs") if isinstance(training, dict) else None
        if not isinstance(training, dict) or not isinstance(begun, int) or not isinstance(wanted, int):
            return before
        if wanted < begun:
            raise ConfigError(
                f"{self.what} was started with training.epochs={begun}, now {wanted} are wanted: a run may get more "
                "epochs under its name, not fewer; choose another --name for a shorter one"
            )
        return before | {"training": training | {"epochs": wanted}}

    def is_another(self, settings: Mapping[str, Any], shard_set: ShardSet | None = None) -> bool:
        """Whether what was begun here, and has learnt nothing, had other settings or other data than these.

        Raises:
            ConfigError: the file with its settings is damaged.
        """
        before = self._settings_before()
        if before is None or self.has_learnt():
            return False
        if shard_set is not None and self.kept_hash() not in (None, shard_set.hash):
            return True
        return bool(changed_settings(without_free_settings(before), settings))

    def kept_hash(self) -> str | None:
        """Hash of the manifest that was written down; None if there is none."""
        kept = storage.join(self.data, _FILES[-1])
        return hashlib.sha256(storage.read_bytes(kept)).hexdigest() if storage.exists(kept) else None

    def kept_data(self, *, shards: str) -> ShardSet | None:
        """The shard set as it was when the run began; None if that was not written down.

        Raises:
            ShardError: what was written down is damaged.
        """
        if not storage.exists(storage.join(self.data, _FILES[-1])):
            return None
        return replace(open_shards(self.data), uri=storage.absolute(shards))

    def data_of(self, shards: str) -> ShardSet:
        """The run's data: those that it began with, or, before it begins, those that there are.

        A shard set that has got more clips meanwhile still has the others' files: the run keeps to the clips that it
        began with, and that is logged in a line.

        Raises:
            ConfigError: classes or flow contract have changed, or shards that the run began with are gone.
            ShardError: the shards are missing or damaged.
        """
        now = open_shards(shards)
        if storage.exists(self.settings) and not self.has_learnt():
            return now
        then = self.kept_data(shards=shards)
        if then is None:
            self._refuse_other_manifest(now)
            return now
        if then.hash == now.hash:
            return then
        begun = f"{self.what} began with manifest {then.hash[:12]} of {shards}, which holds {now.hash[:12]} by now"
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

    def keep_data(self, shard_set: ShardSet) -> None:
        """Write down which data a run begins with; nothing if that was done before with the same.

        Raises:
            ShardError: the shard set has been changed since it was opened.
            StorageError: the folder cannot be written.
        """
        if self.kept_hash() == shard_set.hash:
            return
        self._manifest_of(shard_set)
        with storage.on_disk(storage.join(shard_set.uri, _FILES[0])) as local:  # of a large set it is gigabytes
            storage.write_file(storage.join(self.data, _FILES[0]), local)
        # Read again, as the index may have been replaced meanwhile; without a manifest it counts for nothing.
        storage.write_bytes(storage.join(self.data, _FILES[-1]), self._manifest_of(shard_set))

    def _manifest_of(self, shard_set: ShardSet) -> bytes:
        content = storage.read_bytes(storage.join(shard_set.uri, _FILES[-1]))
        if hashlib.sha256(content).hexdigest() != shard_set.hash:
            raise ShardError(
                f"{self.what} was to begin with manifest {shard_set.hash[:12]} of {shard_set.uri}, an ingest has just "
                "written another: run the same command again when it has ended"
            )
        return content

    def explained(self, error: ShardError, shard_set: ShardSet) -> ShardError:
        """The error of a shard that cannot be read, with the reason if an ingest has changed the set meanwhile."""
        try:
            now = open_shards(shard_set.uri).hash
        except ShardError:
            now = "none"
        if now == shard_set.hash:
            return error
        return ShardError(
            f"{self.what} keeps to manifest {shard_set.hash[:12]} of {shard_set.uri}, which an ingest has meanwhile "
            f"replaced by {now[:12]}, and shards are gone ({str(error).partition(':')[0]}): choose another --name, or "
            "ingest the earlier data again and run the same command"
        )

    def _refuse_other_manifest(self, now: ShardSet) -> None:
        """Of a run that an earlier version began only the tags of its MLflow run name the data."""
        identity = Outbox(run_uri=self.uri).identity()
        if identity is None:
            return
        then = identity.tags.get(MANIFEST)
        if then is None:
            _log.warning(
                "%s in %s does not say which data it began with: it is taken to be manifest %s of %s",
                *(self.what, self.uri, now.hash[:12], now.uri),
            )
        elif then != now.hash:
            raise ConfigError(
                f"{self.what} began with manifest {then[:12]}, {now.uri} holds {now.hash[:12]} by now: choose another "
                "--name, or ingest the earlier data again"
            )


@dataclass(frozen=True, kw_only=True)
class SearchFolder(RunFolder):
    """The folder of a search, which holds the folders of its trials' runs."""

    kind: ClassVar[str] = "search"
    takes_more_epochs: ClassVar[bool] = False
    settings_name: ClassVar[str] = "search.json"

    def has_learnt(self) -> bool:
        """Whether a trial has ended an epoch, as their records say, or has a checkpoint."""
        trials = storage.join(self.uri, "trials")
        if not storage.exists(self.settings):
            return False
        records = list(storage.list_files(trials)) if storage.exists(trials) else []
        # A damaged one is for its reader to name.
        if any(_NO_EPOCH not in storage.read_bytes(storage.join(trials, path)) for path, _ in records):
            return True
        return super().has_learnt()

    def trial(self, name: str) -> RunFolder:
        """The folder of the training run of the trial with this name."""
        return RunFolder(uri=storage.join(self.uri, name), what=f"{RunFolder.kind} {name!r}")


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
