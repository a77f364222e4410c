"""Temperature scaling with validation scores (Guo et al. 2017): fitted on one evaluation, judged on another."""

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
    """A temperature, and what it does to the probabilities of clips that it has not seen."""

    temperature: float
    """By which logits are divided; above 1 where the network is too sure."""
    fitted_on: str
    """Split of the clips that it was fitted on."""
    num_clips: int
    """How many these were."""
    ece_before: float
    """Expected calibration error of the judged clips, in [0, 1]."""
    ece_after: float
    """The same with the temperature."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {name: getattr(self, name) for name in self.__slots__}

    def sentence(self) -> str:
        """In words."""
        return (
            f"temperature {self.temperature:.3g}, fitted on the {self.num_clips} clips of split {self.fitted_on}: ECE "
            f"{self.ece_before:.2%} becomes {self.ece_after:.2%}"
        )


def require_calibrates(uri: str, about: TableRecord, *, out: str | None = None) -> None:
    """Refuse an evaluation to fit on that is of another model or protocol, or of the clips that are judged.

    Args:
        uri: the evaluation to fit on.
        about: what is judged.
        out: where that is to be written, over what is there.

    Raises:
        ConfigError: names both.
        StorageError: there is none, or it is damaged.
    """
    folder, validation = read_record(find_table(uri))
    if out is not None and folder == storage.join(storage.absolute(out), FOLDER):
        raise ConfigError(f"calibrate_on {redact(uri)} would be written over: choose another --out")
    for what, name in (("model", "model_sha256"), ("protocol", "protocol"), ("manifest", "manifest_hash")):
        if getattr(validation, name) != getattr(about, name):
            raise ConfigError(
                f"calibrate_on must be an evaluation of the same model, protocol and shards on a validation split, "
                f"{redact(folder)} is of another {what}: evaluate this model there first"
            )
    if validation.split == about.split:
        raise ConfigError(
            f"calibrate_on must be of another split than {about.split}, which is judged, {redact(folder)} is of it: a "
            "temperature is fitted on validation clips"
        )


def fitted_temperature(uri: str, judged: ClipScores) -> FittedTemperature:
    """Fit a temperature on the evaluation at `uri`, and judge it on other clips.

    Raises:
        ConfigError: both have clips in common, or as require_calibrates.
        StorageError: there is none, it is damaged, or not whole.
    """
    require_calibrates(uri, judged.about)
    validation = read_clip_scores(find_table(uri))
    shared = np.intersect1d(validation.positions, judged.positions)
    if shared.size:
        raise ConfigError(
            f"calibrate_on must not have clips that are judged, {redact(validation.uri)} has {shared.size} of the "
            f"{len(judged.positions)}: choose a split that shares none"
        )
    heads = judged.about.heads
    temperature = fit_temperature(validation.scores.logits, validation.labels, heads=heads)
    scaled = softmax_by_head(judged.scores.logits / temperature, heads)
    return FittedTemperature(
        temperature=temperature,
        fitted_on=validation.about.split,
        num_clips=len(validation.labels),
        ece_before=reliability(judged.scores.probabilities, judged.labels, heads=heads).ece,
        ece_after=reliability(scaled, judged.labels, heads=heads).ece,
    )
