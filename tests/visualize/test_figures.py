import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.image import imread
from pixels import num_pixels

from twostream_ray.visualize import accuracies_picture, confusion_picture, contact_sheet, figures
from twostream_ray.visualize.figures import save


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    for cached in (figures._families, figures._warn_missing):
        cached.cache_clear()
    yield
    for cached in (figures._families, figures._warn_missing):
        cached.cache_clear()


def font_with(letters: str, path: Path) -> None:
    """A font file whose letters are black squares."""
    pen = TTGlyphPen(None)
    for corner in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"letter{ord(letter)}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"letter{ord(letter)}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def picture(name: str, path: Path) -> None:
    confusion_picture(np.eye(3, dtype=int), [name, "run", "jump"], path)


@pytest.mark.parametrize("name", ["走る", "걷기", "走る and 걷기 at once", "\U0001f3c3", "ቡና"])
def test_letters_without_a_font_are_reported_once_with_one_to_install(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = [font for font in font_manager.fontManager.ttflist if "matplotlib" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", shipped)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with caplog.at_level(logging.WARNING, logger="twostream_ray"):
        for _ in range(2):
            picture(name, tmp_path / "c.png")
    (said,) = caplog.messages
    assert "no installed font has" in said and "apt install fonts-noto" in said


def test_an_installed_font_is_taken_for_the_letters_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    font_with("走る", tmp_path / "squares.ttf")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "squares.ttf")])
    picture("走る走る走る走る", tmp_path / "c.png")
    picture("aiaiaiai", tmp_path / "latin.png")
    assert not caplog.messages
    squares, latin = (num_pixels(tmp_path / name, "#000000") for name in ("c.png", "latin.png"))
    assert squares > latin + 300
    assert figures._families(frozenset("走る")) == ("Squares",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["$x_1$", "$", "$$", r"$\frac{1}{0$", "a_b^c", "n\new\tlines", "\x1b[31mred", "x" * 5000, "\udcff", "‮gnp", ""],
)
def test_every_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    picture(name, tmp_path / "c.png")
    short = name[:40]
    accuracies_picture({short: {short: [0.5], short + "2": [0.25]}}, tmp_path / "a.png")
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    contact_sheet(frames, np.zeros((2, 8, 8, 2)), tmp_path / "s.png", max_px=1.0, captions=[name[:40], name[:40]])
    assert max(imread(tmp_path / "c.png").shape[:2]) < 4000


def test_an_axis_keeps_its_powers_of_ten(tmp_path: Path) -> None:
    def drawn(*, by_save: bool) -> np.ndarray:
        figure = Figure(figsize=(4, 3))
        axes = figure.add_subplot()
        axes.loglog([1, 1e6], [1, 1e6])
        path = tmp_path / f"{by_save}.png"
        save(figure, path) if by_save else figure.savefig(path)
        return imread(path)

    np.testing.assert_array_equal(drawn(by_save=True), drawn(by_save=False))
