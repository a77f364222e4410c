"""Fenced code blocks of the pages, to be pasted into a shell in order; and the notebook that a page makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = ROOT / "docs/python.md", ROOT / "docs/python.ipynb"

_FENCED = re.compile(
    r"^(?:<!-- not pasted: (?P<reason>[^\n]+?) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block of code."""

    language: str
    """What stands behind its fence: bash, python, ..."""
    code: str
    """Its lines."""
    line: int
    """Line of the page at which its code begins."""
    reason: str | None
    """Why it is not pasted: `<!-- not pasted: REASON -->` stands before it."""


def fenced_blocks(text: str) -> list[Block]:
    """The code blocks of a page, in order."""
    return [
        Block(
            language=found["language"],
            code=found["code"],
            line=text.count("\n", 0, found.start("code")) + 1,
            reason=found["reason"],
        )
        for found in _FENCED.finditer(text)
    ]


def pasted(blocks: list[Block]) -> Iterator[str]:
    """Lines of a bash script that runs the blocks in order, and ends with the first command that fails."""
    yield "set -eo pipefail"
    for block in blocks:
        yield f"echo '--- line {block.line}' >&2"
        if block.language == "bash":
            yield block.code
        else:
            yield f"python - <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK"


def notebook_of(text: str) -> dict[str, Any]:
    """A page as a notebook (nbformat 4.5) without outputs: prose as Markdown, bash as `%%bash` cells."""
    cells: list[dict[str, Any]] = []
    position = 0
    for found in [*_FENCED.finditer(text), None]:
        end = len(text) if found is None else found.start()
        if prose := text[position:end].strip():
            cells.append({"cell_type": "markdown", "metadata": {}, "source": _lines(prose)})
        if found is None:
            break
        magic = "%%bash\n" if found["language"] == "bash" else ""
        source = _lines((magic + found["code"]).rstrip("\n"))
        cells.append({"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source})
        position = found.end()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook_of(PAGE.read_text()), indent=1, ensure_ascii=False) + "\n")
