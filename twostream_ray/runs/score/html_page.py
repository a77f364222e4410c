"""Self-contained HTML report: styles, pictures and table sorting are inlined, so that it opens without a server.

Names of classes and clips are untrusted: every text is escaped here, and no other module writes markup.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from twostream_ray.redaction import printable, redact

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --paper: #ffffff; --quiet: #5b6673; --line: #d8dee5; --soft: #f3f6f9;
  --accent: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --paper: #14191f; --quiet: #9aa6b3; --line: #323c47;
  --soft: #1d242c; --accent: #7db8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; font: 16px/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
p, li { max-width: 44rem; } .quiet { color: var(--quiet); } code, pre { font: .85rem/1.5 ui-monospace, monospace; }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; white-space: pre-wrap; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
.figures li { flex: 1 1 11rem; background: var(--soft); border-radius: 8px; padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.7rem; line-height: 1.2; }
.figures span { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; color: var(--accent); }
th button:focus-visible { outline: 2px solid var(--accent); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; }
.pictures figure { margin: 0; } .pictures img { width: 100%; display: block; }
figcaption { color: var(--quiet); font-size: .85rem; }
.bar { display: grid; grid-template-columns: 7rem 1fr 6rem; gap: .6rem; align-items: center; margin: .25rem 0; }
.bar i { display: block; height: .9rem; border-radius: 3px; background: var(--accent); min-width: 1px; }
.bar.against i { background: var(--quiet); } .bar b { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
"""
_SORT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("th button").forEach(function (button, column) {
    var down = false;
    button.addEventListener("click", function () {
      down = !down;
      var body = table.tBodies[0];
      var key = function (row) { return row.cells[column].dataset.value || row.cells[column].textContent; };
      Array.from(body.rows).sort(function (a, b) {
        var x = key(a), y = key(b), order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? order : -order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""


class Markup(str):
    """Text that is already HTML; all other text is escaped."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """A text escaped for HTML, without secrets and control characters."""
    return Markup(text if isinstance(text, Markup) else html.escape(redact(printable(text)), quote=True))


def element(name: str, *content: str, **attributes: str) -> Markup:
    """An HTML element with texts and elements as content; `class_` is its class."""
    given = "".join(f' {key.rstrip("_")}="{escaped(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{''.join(map(escaped, content))}</{name}>")


def paragraph(*content: str, quiet: bool = False) -> Markup:
    """A paragraph."""
    return element("p", *content, **({"class_": "quiet"} if quiet else {}))


def items(lines: Iterable[str]) -> Markup:
    """An unordered list."""
    return element("ul", *(element("li", line) for line in lines))


def number_cards(shown: Iterable[tuple[str, str, str]]) -> Markup:
    """Cards with large numbers side by side: (name, number, text below it)."""
    cards = (
        element("li", element("span", name), element("b", value), element("span", more)) for name, value, more in shown
    )
    return element("ul", *cards, class_="figures")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | tuple[str, float]]], *, sortable: bool = False
) -> Markup:
    """A table; a cell is a text, or a text and the number by which it is sorted."""
    body, numbers = [], set()
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            if isinstance(cell, tuple):
                numbers.add(column)
                cells.append(element("td", cell[0], class_="number", **{"data-value": f"{cell[1]:g}"}))
            else:
                cells.append(element("td", cell))
        body.append(element("tr", *cells))
    heads = [
        element(
            "th", element("button", name) if sortable else name, **({"class_": "number"} if column in numbers else {})
        )
        for column, name in enumerate(columns)
    ]
    whole = (element("thead", element("tr", *heads)), element("tbody", *body))
    return element("div", element("table", *whole, **({"class_": "sortable"} if sortable else {})), class_="wide")


def picture(path: Path, *, shows: str) -> Markup:
    """An inlined PNG; `shows` is its alternative text."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return Markup(f'<p><img alt="{escaped(shows)}" src="data:image/png;base64,{content}"></p>')


def pictures(shown: Iterable[tuple[bytes, str]]) -> Markup:
    """Inlined PNGs in a grid: (content, caption)."""
    figures = []
    for content, caption in shown:
        inside = base64.b64encode(content).decode("ascii")
        image = Markup(f'<img alt="{escaped(caption)}" src="data:image/png;base64,{inside}">')
        figures.append(element("figure", image, element("figcaption", caption)))
    return element("div", *figures, class_="pictures")


def bars(rows: Iterable[tuple[str, float, str]]) -> Markup:
    """Horizontal bar chart: (name, length, text after the bar); negative bars are grey."""
    rows = list(rows)
    longest = max((abs(length) for _, length, _ in rows), default=0.0) or 1.0
    return Markup(
        "".join(
            element(
                "div",
                element("span", name),
                element("span", element("i", style=f"width:{abs(length) / longest:.1%}")),
                element("b", said),
                class_="bar against" if length < 0 else "bar",
            )
            for name, length, said in rows
        )
    )


def html_page(title: str, *content: str) -> bytes:
    """The complete file, in UTF-8."""
    body = "\n".join(map(escaped, content))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    text = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n{body}\n<script>{_SORT}</script>\n</body>\n</html>\n"
    )
    return text.encode("utf-8", errors="backslashreplace")
