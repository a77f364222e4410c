"""Calibration by temperature scaling (Guo et al. 2017): fitted on one evaluation, its ECE measured on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.evaluation.calibration import fit_temperature, reliability
from twostream_ray.heads import softmax_by_head
from twostream_ray.redaction import redact
from twostream_ray.runs.score.clip_scores import ClipScores, find_table, read_clip_scores
from twostream_ray.runs.score.score_table import FOLDER, read_record
from twostream_ray.runs.score.table_record import TableRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedTemperature:
    """A temperature, and its effect on the calibration of clips that it was not fitted on."""

    temperature: float
    """Divides the logits; above 1 where the network is overconfident."""
    fitted_on: str
    """Split of the clips that it was fitted on."""
    num_clips: int
    """Number of these clips."""
    ece_before: float
    """Expected calibration error of the evaluated clips, in [0, 1]."""
    ece_after: float
    """The same with the temperature."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}

    def sentence(self) -> str:
        """The result in a sentence."""
        return (
            f"temperature {self.temperature:.3g}, fitted on the {self.num_clips} clips of split {self.fitted_on}: ECE "
            f"{self.ece_before:.2%} becomes {self.ece_after:.2%}"
        )


def require_calibrates(uri: str, about: TableRecord, *, out: str | None = None) -> None:
    """Refuse to fit on an evaluation of another model, protocol or manifest, or of the same split.

    Args:
        uri: the evaluation to fit on.
        about: record of the evaluation to calibrate.
        out: where that is to be written; it must not overwrite the one to fit on.

    Raises:
        ConfigError: the message names both.
        StorageError: the evaluation is missing or damaged.
    """
    folder, validation = read_record(find_table(uri))
    if out is not None and folder == storage.join(storage.absolute(out), FOLDER):
        raise ConfigError(f"calibrate_on {redact(uri)} would be overwritten: choose another --out")
    for what, name in (("model", "model_sha256"), ("protocol", "protocol"), ("manifest", "manifest_hash")):
        if getattr(validation, name) != getattr(about, name):
            raise ConfigError(
                f"calibrate_on must be an evaluation of the same model, protocol and shards on a validation split, "
                f"{redact(folder)} is of another {what}: evaluate this model on a validation split first"
            )
    if validation.split == about.split:
        raise ConfigError(
            f"calibrate_on must be of another split than the evaluated one, {about.split}, got {redact(folder)} of the "
            "same: fit the temperature on validation clips"
        )


def fitted_temperature(uri: str, evaluated: ClipScores) -> FittedTemperature:
    """Fit a temperature on the evaluation at `uri`, and measure the calibration error of other clips with it.

    Raises:
        ConfigError: both have clips in common, or as require_calibrates.
        StorageError: the evaluation is missing, damaged or incomplete.
    """
    require_calibrates(uri, evaluated.about)
    validation = read_clip_scores(find_table(uri))
    shared = np.intersect1d(validation.positions, evaluated.positions)
    if shared.size:
        raise ConfigError(
            f"calibrate_on must have none of the evaluated clips, {redact(validation.uri)} has {shared.size} of the "
            f"{len(evaluated.positions)}: choose a split that shares none"
        )
    heads = evaluated.about.heads
    temperature = fit_temperature(validation.scores.logits, validation.labels, heads=heads)
    scaled = softmax_by_head(evaluated.scores.logits / temperature, heads)
    return FittedTemperature(
        temperature=temperature,
        fitted_on=validation.about.split,
        num_clips=len(validation.labels),
        ece_before=reliability(evaluated.scores.probabilities, evaluated.labels, heads=heads).ece,
        ece_after=reliability(scaled, evaluated.labels, heads=heads).ece,
    )
