"""Paired comparison of two evaluations by their cached scores: McNemar's test, paired bootstrap, classes and clips.

Both must have scored the same clips: the same manifest and split. No network is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twostream_ray import storage
from twostream_ray.errors import ConfigError, TwoStreamError
from twostream_ray.evaluation.paired import ClassDifference, DifferenceIntervals, PairedComparison, compare_hits
from twostream_ray.redaction import one_line, printable, redact
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.score.clip_scores import ClipScores, find_table, read_clip_scores
from twostream_ray.runs.score.settings import CompareConfig
from twostream_ray.storage.json_files import record
from twostream_ray.storage.temporary_folders import temporary_folder

COMPARISON, PAGE = "compare.json", "compare.html"
_SCHEMA = record(
    {"first": {"type": "object"}, "second": {"type": "object"}, "mcnemar_p": {"type": "number"}}, others=True
)
_MOST_CLASSES = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscordantClip:
    """A clip that only one of two models gets right."""

    position: int
    """Position in the shard set's index."""
    clip_id: str
    """Name of the clip."""
    name: str
    """Its class."""
    first: str
    """The first model's prediction."""
    second: str
    """The second model's prediction."""
    first_probability: float
    """The first model's probability of its class, in [0, 1]."""
    second_probability: float
    """The second model's probability of its class, in [0, 1]."""

    @property
    def gain(self) -> float:
        """The second model's probability of its class minus the first's, in [-1, 1]."""
        return self.second_probability - self.first_probability

    @property
    def second_is_right(self) -> bool:
        """Whether the second model gets it right."""
        return self.second == self.name


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Result of comparing a second evaluation with a first one."""

    first: ClipScores
    """The first evaluation."""
    second: ClipScores
    """The second."""
    paired: PairedComparison
    """Paired statistics, second minus first."""
    discordant: tuple[DiscordantClip, ...]
    """Clips that only one of the two gets right, largest difference of probabilities first."""
    notes: tuple[str, ...]
    """Notes for the reader, one sentence each."""

    def shown(self, num_clips: int) -> tuple[DiscordantClip, ...]:
        """The clips that differ most, half of them right by either model as far as there are enough."""
        of_second = [clip for clip in self.discordant if clip.second_is_right]
        of_first = [clip for clip in self.discordant if not clip.second_is_right]
        half = max(num_clips // 2, num_clips - len(of_first))
        chosen = of_second[:half]
        return (*chosen, *of_first[: num_clips - len(chosen)])

    def coverage(self) -> str:
        """The compared clips, as in "3783 of 3783 clips"."""
        return f"{self.paired.num_clips} of {self.first.about.num_expected} clips"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        paired, classes = self.paired, self.first.about.classes
        rows = [
            {
                "name": classes[row.label],
                "num_clips": row.num_clips,
                "first_right": row.first_right,
                "second_right": row.second_right,
                "difference": row.difference,
            }
            for row in paired.classes
        ]
        clips = [
            {name: getattr(clip, name) for name in (*DiscordantClip.__slots__, "gain", "second_is_right")}
            for clip in self.discordant
        ]
        return {
            "first": _named(self.first, top1=paired.first_top1, mean_class=paired.first_mean_class),
            "second": _named(self.second, top1=paired.second_top1, mean_class=paired.second_mean_class),
            "manifest_hash": self.first.about.manifest_hash,
            "split": self.first.about.split,
            "num_clips": paired.num_clips,
            "num_expected": self.first.about.num_expected,
            "both_right": paired.both_right,
            "only_first": paired.only_first,
            "only_second": paired.only_second,
            "both_wrong": paired.both_wrong,
            "difference": {
                "top1": paired.difference,
                "mean_class": paired.second_mean_class - paired.first_mean_class,
            },
            "mcnemar_p": paired.mcnemar_p,
            "intervals": [one.to_dict() for one in (paired.over_clips, paired.over_groups) if one is not None],
            "per_class": rows,
            "discordant": clips,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """The comparison as text."""
        paired = self.paired
        metrics = [
            f"{letter}  top-1 {top1:.2%}   mean class {mean_class:.2%}   {redact(one.about.model)}"
            for letter, one, top1, mean_class in (
                ("A", self.first, paired.first_top1, paired.first_mean_class),
                ("B", self.second, paired.second_top1, paired.second_mean_class),
            )
        ]
        lines = [
            *metrics,
            f"{self.coverage()} of split {self.first.about.split}",
            "",
            verdict(paired),
            f"both right {paired.both_right}, only A {paired.only_first}, only B {paired.only_second}, neither "
            f"{paired.both_wrong}",
        ]
        moved = sorted((row for row in paired.classes if row.difference), key=lambda row: row.difference)
        for heading, rows in (
            ("B is worse on", [row for row in moved if row.difference < 0]),
            ("B is better on", [row for row in reversed(moved) if row.difference > 0]),
        ):
            if rows:
                lines.append(f"{heading}: {', '.join(map(self._moved, rows[:_MOST_CLASSES]))}")
        return "\n".join(map(printable, [*lines, *(f"note: {note}" for note in self.notes)]))

    def _moved(self, row: ClassDifference) -> str:
        """As in "run +12.5% (+5 of 40)"."""
        clips = f"{row.second_right - row.first_right:+d} of {row.num_clips}"
        return f"{self.first.about.classes[row.label]} {row.difference:+.1%} ({clips})"


def compare(config: CompareConfig) -> Comparison:
    """Compare two evaluations, and write compare.json and compare.html to `config.out`.

    Raises:
        ConfigError: they scored different clips, or `config.out` has files that this verb did not write.
        StorageError: a score table is missing, damaged or incomplete, or `config.out` cannot be written.
    """
    from twostream_ray.runs.score.compare_page import compare_page

    out = storage.absolute(config.out)
    refuse_foreign_files(out, (COMPARISON, PAGE), schema=_SCHEMA, verb="compare")
    found = compare_scores(*(read_clip_scores(find_table(name)) for name in (config.first, config.second)))
    storage.write_json(storage.join(out, COMPARISON), found.to_dict())
    with temporary_folder() as folder:
        shown = found.shown(config.num_clips)
        shards = config.shards or found.first.about.shards
        pictures = _thumbnails(found, shown, shards=shards, wanted=config.shards is not None, folder=Path(folder))
        storage.write_bytes(storage.join(out, PAGE), compare_page(found, shown, pictures=pictures))
    return found


def compare_scores(first: ClipScores, second: ClipScores) -> Comparison:
    """Compare two models' scores of the same clips.

    Raises:
        ConfigError: they scored different clips.
    """
    require_same_clips(first, second)
    predicted = [one.predicted() for one in (first, second)]
    labels, classes = first.labels, first.about.classes
    right = [taken == labels for taken in predicted]
    paired = compare_hits(right[0], right[1], labels, num_classes=len(classes), groups=first.groups)
    rows = np.arange(len(labels))
    own = [one.scores.probabilities[rows, labels] for one in (first, second)]
    differing = np.flatnonzero(right[0] != right[1])
    order = differing[np.argsort(-np.abs(own[1] - own[0])[differing], kind="stable")]
    notes = []
    if first.about.protocol != second.about.protocol:
        notes.append(
            "the protocols differ, which may cause part of the difference (A "
            f"{first.about.protocol['name']}, B {second.about.protocol['name']})"
        )
    if first.about.identity == second.about.identity:
        notes.append("both evaluations are of the same model and protocol")
    return Comparison(
        first=first,
        second=second,
        paired=paired,
        discordant=tuple(
            DiscordantClip(
                position=int(first.positions[row]),
                clip_id=first.clip_ids[row],
                name=classes[labels[row]],
                first=classes[predicted[0][row]],
                second=classes[predicted[1][row]],
                first_probability=float(own[0][row]),
                second_probability=float(own[1][row]),
            )
            for row in order
        ),
        notes=tuple(notes),
    )


def require_same_clips(first: ClipScores, second: ClipScores) -> None:
    """Refuse two evaluations of different clips, or of the same clips with different labels.

    Raises:
        ConfigError: names what differs.
    """
    about_first, about_second = first.about, second.about
    if (about_first.manifest_hash, about_first.split) != (about_second.manifest_hash, about_second.split):
        raise ConfigError(
            f"wanted two evaluations of the same clips, got split {about_first.split} of manifest "
            f"{about_first.manifest_hash[:12]} in {redact(first.uri)} and split {about_second.split} of manifest "
            f"{about_second.manifest_hash[:12]} in {redact(second.uri)}: evaluate both models on the same split of the "
            "same shards"
        )
    same = about_first.classes == about_second.classes and np.array_equal(first.labels, second.labels)
    if not same or first.clip_ids != second.clip_ids or about_first.head_classes != about_second.head_classes:
        raise ConfigError(
            f"{redact(first.uri)} and {redact(second.uri)} name the same manifest and split, but have different clips, "
            "labels or classes: one of them is damaged, evaluate again"
        )


def verdict(paired: PairedComparison, *, first: str = "A", second: str = "B") -> str:
    """The difference with its intervals and p, in a sentence; `first` and `second` are names for the models.

    As in "B - A: +6.82 points of top-1, 95% interval [+5.9, +7.8] over clips; McNemar's exact p 3e-29, of 496
    discordant clips".
    """
    intervals = [f"{_points(paired.over_clips)} over clips"]
    if paired.over_groups is not None:
        few = "" if paired.over_groups.is_trusted else ", which are few"
        intervals.append(f"{_points(paired.over_groups)} over {paired.over_groups.num_units} groups{few}")
    discordant = paired.only_first + paired.only_second
    return (
        f"{second} - {first}: {100 * paired.difference:+.2f} points of top-1, 95% interval {' and '.join(intervals)}; "
        f"McNemar's exact p {paired.mcnemar_p:.2g}, of {discordant} discordant clips"
    )


def _points(one: DifferenceIntervals) -> str:
    return f"[{100 * one.top1.low:+.1f}, {100 * one.top1.high:+.1f}]"


def _named(one: ClipScores, *, top1: float, mean_class: float) -> dict[str, Any]:
    return {
        "model": redact(one.about.model),
        "scores": redact(one.uri),
        "protocol": dict(one.about.protocol),
        "score_table": one.about.identity,
        "top1": top1,
        "mean_class": mean_class,
    }


def _thumbnails(
    found: Comparison, shown: Sequence[DiscordantClip], *, shards: str, wanted: bool, folder: Path
) -> dict[int, Path]:
    """The middle frame of each clip, by its position; {} if the shards cannot be read.

    Raises:
        ConfigError: the shards named by the user are of another manifest.
    """
    from twostream_ray import visualize
    from twostream_ray.data.shards.shards import open_shards, read_clips
    from twostream_ray.data.video.clips import fetch_frames

    pictures: dict[int, Path] = {}
    try:
        shard_set = open_shards(shards)
        if shard_set.hash != found.first.about.manifest_hash:
            raise ConfigError(
                f"shards of manifest {found.first.about.manifest_hash[:12]} were wanted for the pictures, "
                f"{redact(shards)} has {shard_set.hash[:12]}: leave shards out, or name those that were evaluated"
            )
        for one in shown:
            (_, clip), *_ = read_clips(shard_set, [one.position], want_rgb=True, want_flow=False)
            middle = [clip.num_frames // 2]
            (frame,) = fetch_frames(clip.video or b"", middle, num_frames=clip.num_frames)
            pictures[one.position] = folder / f"{one.position}.png"
            visualize.thumbnail(frame, pictures[one.position])
    except TwoStreamError as error:
        if wanted:
            raise
        _log.warning("note: the page shows no pictures of clips: %s", one_line(error))
    return pictures
