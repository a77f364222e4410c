"""Label error detection: an evaluation's most confident mistakes, explained; often their label is wrong.

Clips are ranked by the normalised margin (Northcutt, Jiang and Chuang 2021): the probability of the label minus the
largest one of another class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import require_same_contract
from twostream_ray.data.protocols import resolve_protocol
from twostream_ray.data.shards.shards import ShardSet, open_shards, read_clips
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.errors import ConfigError
from twostream_ray.explanation import Explainer, Explanation
from twostream_ray.model_package import MODEL_FILES, ModelPackage, load_model
from twostream_ray.model_source import local_model
from twostream_ray.models.build import Network
from twostream_ray.redaction import redact
from twostream_ray.runs.score.clip_scores import ClipScores, find_table, read_clip_scores
from twostream_ray.runs.score.explain import ExplainConfig

_REFERENCES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A clip that a model predicts as another class than its label."""

    position: int
    """Position in the shard set's index."""
    clip_id: str
    """Name of the clip."""
    label: int
    """Class of its label, in [0, K)."""
    predicted: int
    """The predicted class, of the same data set."""
    label_probability: float
    """Of the label, in [0, 1]."""
    probability: float
    """Of the predicted class, in [0, 1]."""

    @property
    def margin(self) -> float:
        """Probability of the label minus that of the predicted class, in [-1, 0]."""
        return self.label_probability - self.probability


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedMistake:
    """A mistake with an explanation of either class."""

    mistake: Mistake
    """The clip."""
    frame: NDArray[np.uint8]
    """(H, W, 3) RGB: its middle frame."""
    for_label: Explanation
    """Explanation of the label."""
    for_answer: Explanation
    """Explanation of the predicted class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedMistakes:
    """The worst mistakes of an evaluation."""

    scores: ClipScores
    """The evaluation."""
    model: str
    """The model, as named by the user."""
    num_mistakes: int
    """Number of mistakes among all scored clips."""
    worst: tuple[ExplainedMistake, ...]
    """The explained ones, smallest margin first."""


def find_mistakes(scores: ClipScores) -> list[Mistake]:
    """All mistakes, smallest margin first, then in the order of clips."""
    predicted, rows = scores.predicted(), np.flatnonzero(scores.predicted() != scores.labels)
    found = [
        Mistake(
            position=int(scores.positions[row]),
            clip_id=scores.clip_ids[row],
            label=int(scores.labels[row]),
            predicted=int(predicted[row]),
            label_probability=float(scores.scores.probabilities[row, scores.labels[row]]),
            probability=float(scores.scores.probabilities[row, predicted[row]]),
        )
        for row in rows
    ]
    return sorted(found, key=lambda mistake: mistake.margin)


def explain_mistakes(config: ExplainConfig, *, progress: Callable[[int, int], object]) -> ExplainedMistakes:
    """Explain label and prediction of the worst mistakes; `progress` is called with (clips done, clips in all).

    Raises:
        RegistryError, CheckpointError: the model cannot be loaded.
        StorageError, ShardError: scores or shards cannot be read.
        ConfigError: scores, shards and model do not belong together, there is no mistake, or no such layer.
    """
    assert config.worst is not None  # noqa: S101  (checked by the settings)
    scores = read_clip_scores(find_table(config.scores))
    if config.split not in (None, scores.about.split):
        raise ConfigError(
            f"mistakes of split {config.split} were wanted, {redact(config.scores)} has scores of split "
            f"{scores.about.split}: leave split out, or give --scores of the other evaluation"
        )
    shard_set = _shards_of(scores, config.shards or scores.about.shards)
    network, package = _model_of(scores, config)
    mistakes = find_mistakes(scores)
    if not mistakes:
        raise ConfigError(
            f"{redact(config.scores)} has no mistake to explain: all {len(scores.labels)} clips are right"
        )
    explainer = Explainer(
        network,
        package,
        protocol=resolve_protocol(config.protocol, config.views),
        layers=config.layers,
        references=reference_clips(shard_set, scores.about.split, want_flow=network.needs_flow),
    )
    chosen = mistakes[: config.worst]
    worst = []
    for number, mistake in enumerate(chosen):
        progress(number, len(chosen))
        # RGB even for networks that do not use it: the page shows a frame.
        (_, clip), *_ = read_clips(shard_set, [mistake.position], want_rgb=True, want_flow=network.needs_flow)
        (frame,) = fetch_frames(clip.video or b"", [clip.num_frames // 2], num_frames=clip.num_frames)
        worst.append(
            ExplainedMistake(
                mistake=mistake,
                frame=frame,
                for_label=explainer.explain(clip, class_index=mistake.label),
                for_answer=explainer.explain(clip, class_index=mistake.predicted),
            )
        )
    progress(len(chosen), len(chosen))
    return ExplainedMistakes(scores=scores, model=config.model, num_mistakes=len(mistakes), worst=tuple(worst))


def references_of(config: ExplainConfig, network: Network, package: ModelPackage) -> list[EncodedClip]:
    """Clips of `config.shards` as the baseline of a video's stream contributions; [] if no shards are named.

    Raises:
        ContractMismatchError: the shards' flow is of another kind than the model's.
        ShardError: the shards have no such split, or are damaged.
    """
    if config.shards is None:
        return []
    shard_set = open_shards(config.shards)
    require_same_contract(
        package.contract, shard_set.contract, wanted_by=f"model {config.model}", found_in=config.shards
    )
    return reference_clips(shard_set, config.split or "train", want_flow=network.needs_flow)


def reference_clips(shard_set: ShardSet, split: str, *, want_flow: bool) -> list[EncodedClip]:
    """Baseline clips of a split: at most 16, evenly spaced in its index.

    Raises:
        ShardError: the shards have no such split, or are damaged.
    """
    members = shard_set.split(split)
    chosen = members[np.unique(np.linspace(0, len(members) - 1, _REFERENCES).round().astype(np.int64))]
    return [
        clip
        for position in chosen
        for _, clip in read_clips(shard_set, [int(position)], want_rgb=True, want_flow=want_flow)
    ]


def _shards_of(scores: ClipScores, uri: str) -> ShardSet:
    shard_set = open_shards(uri)
    if shard_set.hash != scores.about.manifest_hash:
        raise ConfigError(
            f"shards of manifest {scores.about.manifest_hash[:12]} were wanted, whose scores {redact(scores.uri)} has, "
            f"{redact(uri)} has {shard_set.hash[:12]}: name the evaluated shards, or evaluate these"
        )
    return shard_set


def _model_of(scores: ClipScores, config: ExplainConfig) -> tuple[Network, ModelPackage]:
    with local_model(config.model, config=config.tracking) as directory:
        with (directory / MODEL_FILES[0]).open("rb") as weights:
            found = hashlib.file_digest(weights, "sha256").hexdigest()
        if found != scores.about.model_sha256:
            raise ConfigError(
                f"the model with weights {scores.about.model_sha256[:12]} was wanted, whose scores "
                f"{redact(scores.uri)} has ({redact(scores.about.model)}), {redact(config.model)} has {found[:12]}: "
                "name the evaluated model, or evaluate this one"
            )
        return load_model(Path(directory))
