"""Saving of Matplotlib figures as PNG with per-glyph font fallback; texts are literal, never math."""

from __future__ import annotations

import contextlib
import logging
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text

from twostream_ray.redaction import printable

_log = logging.getLogger("twostream_ray")
_MOST_FALLBACKS = 6
_LAST_RESORT = "Last Resort"
"""The font whose glyphs are boxes for whole blocks of letters."""

_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG; characters missing from all installed fonts become boxes, with one warning.

    Raises:
        OSError: the file cannot be written.
    """
    for text in figure.findobj(Text):
        # Tick labels with powers of ten are formatted as math later; a dollar sign at this point is part of a name.
        if "$" in text.get_text():
            text.set_parse_math(False)
        text.set_text(printable(text.get_text(), lines=True))
    families = _families(frozenset("".join(text.get_text() for text in figure.findobj(Text))))
    if families:
        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), *families])
        for axes in figure.axes:
            axes.tick_params(labelfontfamily=[*rcParams["font.family"], *families])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path)


@lru_cache(maxsize=64)
def _families(letters: frozenset[str]) -> tuple[str, ...]:
    """Installed fonts with the characters that the default font lacks."""
    wanted = {ord(letter) for letter in letters if not letter.isspace() and letter.isprintable()}
    missing = wanted - _charmap(font_manager.findfont(font_manager.FontProperties()))
    if not missing:
        return ()
    _find_new_fonts()
    found: list[str] = []
    files = {font.name: font.fname for font in font_manager.fontManager.ttflist if _LAST_RESORT not in font.name}
    held = {name: missing & _charmap(file) for name, file in sorted(files.items())}
    while missing and len(found) < _MOST_FALLBACKS:
        best = max(held, key=lambda name: len(held[name] & missing))
        if not held[best] & missing:
            break
        found.append(best)
        missing -= held[best]
    if missing:
        _warn_missing("".join(map(chr, sorted(missing)[:8])))
    return tuple(found)


def _charmap(file: str) -> set[int]:
    try:
        return set(font_manager.get_font(file).get_charmap())
    except (OSError, RuntimeError):  # gone, or no font that FreeType reads
        return set()


def _find_new_fonts() -> None:
    """Add newly installed fonts to Matplotlib's font list, which is cached per Matplotlib version."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for file in font_manager.findSystemFonts():
        if file not in known:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                font_manager.fontManager.addfont(file)


@lru_cache(maxsize=1)
def _warn_missing(letters: str) -> None:
    names = " ".join(unicodedata.name(letter, "") for letter in letters)
    package = "fonts-noto-cjk" if any(script in names for script in _EAST_ASIAN) else "fonts-noto"
    _log.warning(
        "note: pictures show boxes for letters that no installed font has (%s): install one that has them, such as "
        "Noto (Debian and Ubuntu: apt install %s)",
        letters,
        package,
    )
