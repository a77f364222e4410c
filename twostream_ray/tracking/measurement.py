"""Metrics of a registered version on n of N clips of one split of one data manifest, as tags."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from twostream_ray.errors import RegistryError
from twostream_ray.storage import json_files

_logger = logging.getLogger(__name__)
_SCHEMA = json_files.record(
    {
        "manifest_hash": json_files.WORD,
        "split": json_files.WORD,
        "num_evaluated": {"type": "integer", "minimum": 1, "maximum": 2**53},
        "num_clips": {"type": "integer", "minimum": 1, "maximum": 2**53},
        "metrics": {"type": "object", "additionalProperties": {"type": "number", "minimum": -1e300, "maximum": 1e300}},
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A model's scores on one split."""

    manifest_hash: str
    """Hash of the data manifest that was evaluated."""
    split: str
    """Split of it, such as test."""
    num_evaluated: int
    """n: clips that were scored, at least 1."""
    num_clips: int
    """N: clips of the split; the others could not be used."""
    metrics: Mapping[str, float]
    """Finite values by name, higher is better: top1 and mean_class_accuracy, in [0, 1]."""

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
        """How many clips the scores rest on: "298 of 300"."""
        return f"{self.num_evaluated} of {self.num_clips}"

    def tags(self) -> dict[str, str]:
        """Tags of a version: one that programs read, and `test.top1` = "0.9333 (298 of 300 clips)" for people."""
        whole = {
            "manifest_hash": self.manifest_hash,
            "split": self.split,
            "num_evaluated": self.num_evaluated,
            "num_clips": self.num_clips,
            "metrics": dict(self.metrics),
        }
        shown = {f"{self.split}.{name}": f"{value:.4f} ({self.n_of_n()} clips)" for name, value in self.metrics.items()}
        return {measurement_key(self.manifest_hash, self.split): json.dumps(whole)} | shown


def measurement_key(manifest_hash: str, split: str) -> str:
    """Tag key of the measurement on this split of this manifest."""
    return re.sub(r"[^\w.\-]", "_", f"measured.{split}.{manifest_hash}")[:250]


def measurement_from(tags: Mapping[str, str], *, manifest_hash: str, split: str) -> Measurement | None:
    """The measurement on this split of this manifest in a version's tags; none if it was not measured there.

    A tag that is not one of ours, as any user may set it, is skipped with a warning.
    """
    key = measurement_key(manifest_hash, split)
    if key not in tags:
        return None
    try:
        stored = json_files.parse_json(
            tags[key],
            _SCHEMA,
            where=f"tag {key} of a model's version",
            what="a measurement",
            way_out="it is passed by; record_measurement, as after an evaluation, writes it anew",
            error=RegistryError,
        )
        found = Measurement(**stored)
    except RegistryError as error:
        _logger.warning("%s", error)
        return None
    return found if (found.manifest_hash, found.split) == (manifest_hash, split) else None
