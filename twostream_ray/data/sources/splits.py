"""Stratified group split by hash order (as scikit-learn's StratifiedGroupKFold, but stable when clips are added).

The groups of a class are sorted by a hash of seed, class and group, and that order is cut at the requested fractions.
So adding a clip to a group moves no other clip, and adding a group to a class moves at most one group of that class
across each cut, and none of another class.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from twostream_ray.data.sources.lists import Membership
from twostream_ray.errors import CatalogError

SPLITS_OF_SHARES = {2: ("train", "test"), 3: ("train", "val", "test")}
"""Number of shares -> names of the splits."""

_UCF101 = re.compile(r"_g(\d{2,6})(?=_|\Z)")
_HMDB51 = re.compile(r"(?P<film>.+)_[hulf]_(?:nm|cm)_np\d{1,2}_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d{1,6}")
_KINETICS = re.compile(r"(?P<id>[A-Za-z0-9_-]{11})_\d{6}_\d{6}")
_MOST_SHOWN = 3


def group_of_name(clip: str) -> str:
    """The source that a clip was cut from, parsed from its file name; the path itself if the name has no known form.

    UCF101: v_ApplyEyeMakeup_g08_c01.avi belongs to group 08 of its folder. HMDB51: the part before _f_cm_np1_le_goo_0
    is the film. Kinetics: ID_SSSSSS_EEEEEE belongs to the video ID.
    """
    path = PurePosixPath(clip)
    if match := _UCF101.search(path.stem):
        return f"{path.parent}/g{match[1]}"
    if match := _HMDB51.fullmatch(path.stem):
        return match["film"]
    if match := _KINETICS.fullmatch(path.stem):
        return match["id"]
    return clip


def splits_of_groups(
    class_groups: Mapping[str, set[str]], *, shares: Sequence[float], names: Sequence[str], seed: int
) -> dict[str, str]:
    """Assign each group to a split, so that each split gets its share of every class's groups.

    A class with at least as many groups as there are splits has one in each; with fewer, first the first split and then
    the last one get one. A group with clips of several classes counts for the class with the fewest groups.

    Args:
        class_groups: class -> its groups.
        shares: one per split, in (0, 1), adding up to 1.
        names: of the splits.
        seed: of the hash order.

    Returns:
        Group -> split.
    """
    classes_of: dict[str, list[str]] = {}
    for name, groups in class_groups.items():
        for group in groups:
            classes_of.setdefault(group, []).append(name)
    own: dict[str, list[str]] = {name: [] for name in class_groups}
    for group, classes in classes_of.items():
        own[min(classes, key=lambda name: (len(class_groups[name]), name))].append(group)
    return {
        group: split
        for name, groups in own.items()
        for group, split in zip(
            sorted(groups, key=lambda group: _position(group, class_name=name, seed=seed)),
            _in_shares(len(groups), shares=shares, names=names),
            strict=True,
        )
    }


def _position(group: str, *, class_name: str, seed: int) -> bytes:
    text = "\0".join((str(seed), class_name, group))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _in_shares(count: int, *, shares: Sequence[float], names: Sequence[str]) -> list[str]:
    """The split of each of `count` groups in hash order, the last split first.

    When `count` grows by one, no cut moves by more than one.
    """
    if count < len(names):
        return [names[-1], names[0]][2 - count :]
    ends: list[int] = []
    total = 0.0
    for later, share in enumerate(reversed(shares[1:]), start=1):
        total += share
        before = ends[-1] if ends else 0
        ends.append(min(max(math.floor(total * count + 0.5), before + 1), count - (len(shares) - later)))
    sizes = [end - start for start, end in zip([0, *ends], [*ends, count], strict=True)]
    return [name for name, size in zip(reversed(names), sizes, strict=True) for _ in range(size)]


def split_by_shares(
    memberships: Sequence[Membership], shares: Sequence[float], *, seed: int, named_in: str
) -> tuple[list[Membership], list[str]]:
    """Replace the split "all" by random splits of these shares, and report their sizes in notes.

    Args:
        memberships: all in the split "all".
        shares: one per split, adding up to 1.
        seed: of the hash order.
        named_in: where the memberships were read, for the error message.

    Raises:
        CatalogError: the memberships already have splits.
    """
    if known := sorted({m.split for m in memberships} - {"all"}):
        raise CatalogError(
            f"catalog.split is for clips without splits, {named_in} already defines the splits {', '.join(known)}: "
            "leave catalog.split out, or set catalog.root to one split's folder, or remove the split column"
        )
    names = SPLITS_OF_SHARES[len(shares)]
    class_groups: dict[str, set[str]] = {}
    for m in memberships:
        class_groups.setdefault(m.class_name, set()).add(m.group)
    split_of = splits_of_groups(class_groups, shares=shares, names=names, seed=seed)
    divided = [replace(m, split=split_of[m.group]) for m in memberships]
    class_splits = {name: {split_of[group] for group in groups} for name, groups in class_groups.items()}
    counts = Counter(m.split for m in divided)
    sizes = ", ".join(f"{name} {counts[name]}" for name in names)
    note = f"{len(divided)} clips in {len(split_of)} groups are split with seed {seed}: {sizes}"
    return divided, [note, *_notes_on_classes(class_splits, names=names)]


def _notes_on_classes(class_splits: Mapping[str, set[str]], *, names: Sequence[str]) -> list[str]:
    """Sentences on classes that have no clip in some split."""
    lacking: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for name, splits in sorted(class_splits.items()):
        for split in names:
            if split not in splits:
                lacking[split] += 1
                examples.setdefault(split, []).append(name)
    return [
        f"{count} of {len(class_splits)} classes have too few groups of clips to have one in split {split}: "
        f"{', '.join(examples[split][:_MOST_SHOWN])}{', ...' if count > _MOST_SHOWN else ''}"
        for split, count in lacking.items()
    ]
