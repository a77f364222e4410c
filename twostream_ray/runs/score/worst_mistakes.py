"""Worst mistakes of an evaluation, explained: where a model is surest and wrong, the label is often the mistake.

Clips are ranked by the normalised margin (Northcutt, Jiang and Chuang 2021): the probability of the label less the
largest of another class.
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
    """A clip that a model takes for another class than its label says."""

    position: int
    """Position in the shard set's index."""
    clip_id: str
    """Name of the clip."""
    label: int
    """The class that its label says, in [0, K)."""
    taken_for: int
    """The class that the model chooses, of the same data set."""
    label_probability: float
    """Of the label, in [0, 1]."""
    probability: float
    """Of the class that the model chooses."""

    @property
    def margin(self) -> float:
        """How much less probable the label is, in [-1, 0]: -1 where the model is sure of the other class."""
        return self.label_probability - self.probability


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedMistake:
    """A mistake with what speaks for either class."""

    mistake: Mistake
    """The clip."""
    frame: NDArray[np.uint8]
    """(H, W, 3) RGB: its middle frame."""
    for_label: Explanation
    """What speaks for the label."""
    for_answer: Explanation
    """What speaks for the class that the model chooses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplainedMistakes:
    """The worst mistakes of an evaluation."""

    scores: ClipScores
    """The evaluation."""
    model: str
    """As it was named."""
    num_mistakes: int
    """Of all clips that were scored."""
    worst: tuple[ExplainedMistake, ...]
    """Smallest margin first."""


def find_mistakes(scores: ClipScores) -> list[Mistake]:
    """All mistakes, smallest margin first; of equal ones the first clip."""
    predicted, rows = scores.predicted(), np.flatnonzero(scores.predicted() != scores.labels)
    found = [
        Mistake(
            position=int(scores.positions[row]),
            clip_id=scores.clip_ids[row],
            label=int(scores.labels[row]),
            taken_for=int(predicted[row]),
            label_probability=float(scores.scores.probabilities[row, scores.labels[row]]),
            probability=float(scores.scores.probabilities[row, predicted[row]]),
        )
        for row in rows
    ]
    return sorted(found, key=lambda mistake: mistake.margin)


def explain_mistakes(config: ExplainConfig, *, progress: Callable[[int, int], object]) -> ExplainedMistakes:
    """Explain label and answer of the worst mistakes; `progress` gets the clips done and to do.

    Raises:
        RegistryError, CheckpointError: the model cannot be had.
        StorageError, ShardError: scores or shards cannot be read.
        ConfigError: scores, shards and model are not of each other, there is no mistake, or a layer is not there.
    """
    assert config.worst is not None  # noqa: S101  (the settings have looked)
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
        # Frames also for networks without them: the reader wants to see the clip.
        (_, clip), *_ = read_clips(shard_set, [mistake.position], want_rgb=True, want_flow=network.needs_flow)
        (frame,) = fetch_frames(clip.video or b"", [clip.num_frames // 2], num_frames=clip.num_frames)
        worst.append(
            ExplainedMistake(
                mistake=mistake,
                frame=frame,
                for_label=explainer.explain(clip, class_index=mistake.label),
                for_answer=explainer.explain(clip, class_index=mistake.taken_for),
            )
        )
    progress(len(chosen), len(chosen))
    return ExplainedMistakes(scores=scores, model=config.model, num_mistakes=len(mistakes), worst=tuple(worst))


def references_of(config: ExplainConfig, network: Network, package: ModelPackage) -> list[EncodedClip]:
    """Clips of the shards that are named, from which a video's contributions are counted; [] where none are.

    Raises:
        ContractMismatchError: their flow is of another kind than the model's.
        ShardError: they have no such split, or are damaged.
    """
    if config.shards is None:
        return []
    shard_set = open_shards(config.shards)
    require_same_contract(
        package.contract, shard_set.contract, wanted_by=f"model {config.model}", found_in=config.shards
    )
    return reference_clips(shard_set, config.split or "train", want_flow=network.needs_flow)


def reference_clips(shard_set: ShardSet, split: str, *, want_flow: bool) -> list[EncodedClip]:
    """Clips that stand for the others in a split: 16, evenly over its index.

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
            f"shards of manifest {scores.about.manifest_hash[:12]} were wanted, which {redact(scores.uri)} has scores "
            f"of, {redact(uri)} has {shard_set.hash[:12]}: name those that were evaluated, or evaluate these"
        )
    return shard_set


def _model_of(scores: ClipScores, config: ExplainConfig) -> tuple[Network, ModelPackage]:
    with local_model(config.model, config=config.tracking) as directory:
        with (directory / MODEL_FILES[0]).open("rb") as weights:
            found = hashlib.file_digest(weights, "sha256").hexdigest()
        if found != scores.about.model_sha256:
            raise ConfigError(
                f"a model with weights {scores.about.model_sha256[:12]} was wanted, which {redact(scores.uri)} has "
                f"scores of ({redact(scores.about.model)}), {redact(config.model)} has {found[:12]}: name that model, "
                "or evaluate this one"
            )
        return load_model(Path(directory))
