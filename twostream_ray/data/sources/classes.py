"""Class names: sorting, which assigns labels, and Unicode normalisation of names that look the same."""

import re
from collections.abc import Iterable
from unicodedata import normalize

_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d{1,300})?", re.ASCII)


def in_order(names: Iterable[str]) -> list[str]:
    """Names in label order: numerically if all are numbers (1, 2, 10), otherwise as text."""
    found = sorted(names)
    return sorted(found, key=float) if all(map(_NUMBER.fullmatch, found)) else found


def merge_equivalent_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Canonically equivalent names -> the NFC form to use; notes on these and on names that are nearly the same.

    macOS decomposes accented letters in file names (NFD), other systems do not (NFC).
    """
    composed: dict[str, list[str]] = {}
    folded: dict[str, list[str]] = {}
    for name in sorted(names):
        composed.setdefault(normalize("NFC", name), []).append(name)
    for name in composed:
        folded.setdefault(_folded(name), []).append(name)
    several = {new: old for new, old in composed.items() if len(old) > 1}
    notes = [
        f"class {new} is spelt in {len(old)} ways that look the same (NFC and NFD) and is treated as one class"
        for new, old in several.items()
    ]
    notes += [
        f"classes {' and '.join(map(repr, near))} differ only in case, blanks or leading zeros: rename one if they are "
        "the same"
        for near in folded.values()
        if len(near) > 1
    ]
    return {name: new for new, old in several.items() for name in old}, notes


def _folded(name: str) -> str:
    text = " ".join(name.casefold().replace("_", " ").split())
    return text.lstrip("0") or "0" if text.isdecimal() else text
