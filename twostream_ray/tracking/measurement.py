"""Measurement: metrics of a registered version on n of N clips of one split of one data manifest, stored as tags."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from twostream_ray.errors import RegistryError
from twostream_ray.redaction import redact
from twostream_ray.storage import json_files
from twostream_ray.tracking.settings import TrackingConfig

_logger = logging.getLogger(__name__)
_PREFIX = "measured."
_LONGEST_URI = 1000
"""Longest URI in a tag, which MLflow limits to 5000 characters."""
_SCHEMA = json_files.record(
    {
        "manifest_hash": json_files.WORD,
        "split": json_files.WORD,
        "num_evaluated": {"type": "integer", "minimum": 1, "maximum": 2**53},
        "num_clips": {"type": "integer", "minimum": 1, "maximum": 2**53},
        "metrics": {"type": "object", "additionalProperties": {"type": "number", "minimum": -1e300, "maximum": 1e300}},
    },
    {"scores": {"type": "string", "maxLength": 4000}, "score_table": {"type": "string", "maxLength": 200}},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A model's metrics on one split."""

    manifest_hash: str
    """Hash of the evaluated data's manifest."""
    split: str
    """Split of it, such as test."""
    num_evaluated: int
    """n: scored clips, at least 1."""
    num_clips: int
    """N: clips of the split, including quarantined ones."""
    metrics: Mapping[str, float]
    """Finite values by name, higher is better: top1 and mean_class_accuracy, in [0, 1]."""
    scores: str = ""
    """URI of the evaluation's score table; empty if unknown, as from earlier versions of this package."""
    score_table: str = ""
    """sha256 that identifies the table, as another one may have replaced it."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_evaluated <= self.num_clips:
            raise RegistryError(
                f"a measurement needs 1 to all of its {self.num_clips} clips, got {self.num_evaluated}: "
                f"evaluate split {self.split} of manifest {self.manifest_hash[:12]} again"
            )
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise RegistryError(f"{name} of split {self.split} must be finite, got {value}: do not register this")

    def n_of_n(self) -> str:
        """Numbers of clips, as in "298 of 300"."""
        return f"{self.num_evaluated} of {self.num_clips}"

    def tags(self) -> dict[str, str]:
        """Tags of a version: a JSON one for programs, and `test.top1` = "0.9333 (298 of 300 clips, manifest ...)"."""
        whole = {
            "manifest_hash": self.manifest_hash,
            "split": self.split,
            "num_evaluated": self.num_evaluated,
            "num_clips": self.num_clips,
            "metrics": dict(self.metrics),
        }
        if 0 < len(self.scores) <= _LONGEST_URI:
            whole |= {"scores": redact(self.scores), "score_table": self.score_table}
        where = f"{self.n_of_n()} clips, manifest {self.manifest_hash[:12]}"
        top1 = self.metrics.get("top1")
        shown = {} if top1 is None else {f"{self.split}.top1": f"{top1:.4f} ({where})"}
        return {measurement_key(self.manifest_hash, self.split): json.dumps(whole)} | shown


def measurement_key(manifest_hash: str, split: str) -> str:
    """Tag key of the measurement on this split of this manifest."""
    return re.sub(r"[^\w.\-]", "_", f"{_PREFIX}{split}.{manifest_hash}")[:250]


def measurements_in(tags: Mapping[str, str]) -> list[Measurement]:
    """All measurements in a version's tags, ordered by split and manifest; invalid tags are skipped."""
    found = {key: _parsed(tags, key) for key in sorted(tags) if key.startswith(_PREFIX)}
    return [ours for key, ours in found.items() if ours and key == measurement_key(ours.manifest_hash, ours.split)]


def measurement_from(tags: Mapping[str, str], *, manifest_hash: str, split: str) -> Measurement | None:
    """The measurement on this split of this manifest in a version's tags; None if it was not measured there.

    An invalid tag, as any user may set it, is skipped with a warning.
    """
    key = measurement_key(manifest_hash, split)
    found = _parsed(tags, key) if key in tags else None
    return found if found and (found.manifest_hash, found.split) == (manifest_hash, split) else None


def evaluate_command(name: str, version: int, *, split: str, shards: str | None, config: TrackingConfig) -> str:
    """The command that measures a version on a split; SHARDS stands for an unknown shard set."""
    model = shlex.quote(f"models:/{name}/{version}")
    data = f"--shards {shlex.quote(redact(shards or 'SHARDS'))} --split {shlex.quote(split)}"
    return f"twostream evaluate --model {model} {data}{config.uri_option()}"


def promote_command(name: str, version: int, *, manifest_hash: str, split: str, config: TrackingConfig) -> str:
    """The command that compares a version with the champion on a split."""
    data = f"--split {shlex.quote(split)} --manifest {manifest_hash[:12]}"
    return f"twostream promote {version} {data} --tracking.model_name {shlex.quote(name)}{config.uri_option()}"


def rollback_command(name: str, version: int, *, config: TrackingConfig) -> str:
    """The command that makes a version champion regardless of its metrics."""
    return f"twostream rollback --to {version} --tracking.model_name {shlex.quote(name)}{config.uri_option()}"


def _parsed(tags: Mapping[str, str], key: str) -> Measurement | None:
    """The measurement in a tag; None, with a warning, for an invalid one."""
    try:
        stored = json_files.parse_json(
            tags[key],
            _SCHEMA,
            where=f"tag {key} of a model's version",
            what="a measurement",
            way_out="it is skipped; `twostream evaluate` of models:/NAME/VERSION on the same data writes it again",
            error=RegistryError,
        )
        return Measurement(**stored)
    except RegistryError as error:
        _logger.warning("%s", error)
        return None
