"""The order of a data set's classes, which gives them their labels, and names that only look different."""

import re
from collections.abc import Iterable
from unicodedata import normalize

_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d{1,300})?", re.ASCII)


def in_order(names: Iterable[str]) -> list[str]:
    """Names as they are numbered: as numbers where all are numbers (1, 2, 10), else as texts."""
    found = sorted(names)
    return sorted(found, key=float) if all(map(_NUMBER.fullmatch, found)) else found


def alike(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Names that look the same -> the one to use, and notes on these and on names that nearly look the same.

    macOS takes letters and their accents apart (NFD), other systems do not (NFC).
    """
    composed: dict[str, list[str]] = {}
    folded: dict[str, list[str]] = {}
    for name in sorted(names):
        composed.setdefault(normalize("NFC", name), []).append(name)
    for name in composed:
        folded.setdefault(_folded(name), []).append(name)
    several = {new: old for new, old in composed.items() if len(old) > 1}
    notes = [
        f"class {new} is written in {len(old)} ways that look the same (NFC and NFD) and is taken as one"
        for new, old in several.items()
    ]
    notes += [
        f"classes {' and '.join(map(repr, near))} differ in case, blanks or leading zeros alone: rename one if they "
        "are the same"
        for near in folded.values()
        if len(near) > 1
    ]
    return {name: new for new, old in several.items() for name in old}, notes


def _folded(name: str) -> str:
    text = " ".join(name.casefold().replace("_", " ").split())
    return text.lstrip("0") or "0" if text.isdecimal() else text
