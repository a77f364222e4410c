"""Hold-out validation: divides a training split by groups into training and validation parts with deterministic names.

`train1.training-0.1` and `train1.validation-0.1` are the parts of train1 where a tenth of a class's groups validates.
A part's name says all that it depends on, so that every worker, every trial of a search and every later evaluation has
the same clips in it. Clips in quarantine belong to the whole split, and to neither part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from twostream_ray.data.sources.splits import splits_of_groups

_PART = re.compile(
    r"(?P<split>.+)\.(?P<part>training|validation)-(?P<fraction>0\.[0-9]{1,30})(-(?P<seed>[0-9]{1,30}))?"
)
_PARTS = ("training", "validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the two parts of a split."""

    split: str
    """Name of the whole split."""

    is_validation: bool
    """True for the validation part, False for the training part."""

    fraction: float
    """Fraction of each class's groups in the validation part, in (0, 1)."""

    seed: int
    """Seed of the division."""

    @property
    def name(self) -> str:
        """The part's name, accepted wherever a split is named."""
        fraction = f"{self.fraction:.12f}".rstrip("0")
        return f"{self.split}.{_PARTS[self.is_validation]}-{fraction}" + (f"-{self.seed}" if self.seed else "")

    def of(self, clips: Iterable[tuple[int, str, str]]) -> list[int]:
        """Positions of the split's clips that are in this part, given (position, class, group) of all; order is kept.

        A class of two groups or more has one in each part, a class of one group validates nothing.
        """
        given = list(clips)
        class_groups: dict[str, set[str]] = {}
        for _, class_name, group in given:
            class_groups.setdefault(class_name, set()).add(group)
        shares = (1 - self.fraction, self.fraction)
        part_of = splits_of_groups(class_groups, shares=shares, names=_PARTS, seed=self.seed)
        return [position for position, _, group in given if part_of[group] == _PARTS[self.is_validation]]


def part_named(name: str) -> Part | None:
    """Parse the name of a part; None for the name of a whole split."""
    match = _PART.fullmatch(name)
    if match is None or not 0 < float(match["fraction"]) < 1:
        return None
    return Part(
        split=match["split"],
        is_validation=match["part"] == _PARTS[1],
        fraction=float(match["fraction"]),
        seed=int(match["seed"] or 0),
    )
