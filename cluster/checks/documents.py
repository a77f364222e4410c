"""YAML and JSON documents with the line numbers of their values, and the report of mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str | int, ...]
"""Where a value stands: ("spec", "workerGroupSpecs", 0, "minReplicas")."""

PLACEHOLDER = re.compile(r"example\.com|example-bucket|123456789012|\bFILL-IN\b")
"""What stands for the reader's own names: the domain, bucket and account that documentation reserves."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a file."""

    file: str
    """Path below the root."""
    values: Any
    """Dictionaries, lists, texts, numbers, booleans and None."""
    lines: dict[Keys, int] = field(default_factory=dict)
    """Line, from 1, at which a value begins."""

    def line_of(self, keys: Keys) -> int | None:
        """The line of a value, or of the nearest one around it."""
        return next((self.lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.lines), None)


@dataclass(kw_only=True)
class Report:
    """Mistakes, one line each."""

    mistakes: list[str] = field(default_factory=list)

    def add(self, document: Document, keys: Keys, text: str) -> None:
        """Add a mistake, once."""
        line = document.line_of(keys)
        place = f"{document.file}:{line}" if line is not None else document.file
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        mistake = f"{place}: {name}: {text}" if name else f"{place}: {text}"
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)


class _Loader(yaml.CSafeLoader):
    """Refuses duplicate keys, of which YAML's own loaders take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice: make one of both", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(root: Path, file: str, report: Report) -> list[Document]:
    """The documents of a YAML file; what is no YAML is added to the report."""
    try:
        return [Document(file=file, values=one, lines=lines) for one, lines in _parsed((root / file).read_text())]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        whole = Document(file=file, values=None, lines={(): mark.line + 1 if mark else 1})
        report.add(whole, (), f"no YAML: {error.problem or error.context}")
        return []


@lru_cache(maxsize=64)
def _parsed(text: str) -> list[tuple[Any, dict[Keys, int]]]:
    """Values and lines of the documents of a text; nobody changes them."""
    nodes = list(yaml.compose_all(text, Loader=yaml.CSafeLoader))
    values = list(yaml.load_all(text, Loader=_Loader))
    pairs = zip(nodes, values, strict=True)
    return [(value, dict(_lines(node, ()))) for node, value in pairs if node is not None]


def _lines(node: yaml.Node, keys: Keys) -> Iterator[tuple[Keys, int]]:
    yield keys, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*keys, key.value))
            yield (*keys, key.value), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, (*keys, number))


def read_json(root: Path, file: str, report: Report) -> Document | None:
    """A JSON file, in which no key may be given twice."""
    text = (root / file).read_text()

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the key {name!r} is given twice: make one of both")
        return dict(pairs)

    try:
        return Document(file=file, values=json.loads(text, object_pairs_hook=once))
    except ValueError as error:
        report.add(Document(file=file, values=None), (), f"no JSON: {error}")
        return None


def at(values: Any, *keys: str | int, default: Any = None) -> Any:
    """The value at a path of keys, or the default."""
    for key in keys:
        if (isinstance(values, dict) and key in values) or (
            isinstance(values, list) and isinstance(key, int) and key < len(values)
        ):
            values = values[key]
        else:
            return default
    return values


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A value that the user has to fill in."""

    file: str
    line: int
    text: str
    """Its description."""
    filled: bool
    """Whether no placeholder is left there."""


MEANINGS = {
    "example.com": "your registry and MLflow server's domain",
    "example-bucket": "your bucket",
    "123456789012": "your AWS account's number",
}


def blanks(root: Path, file: str) -> Iterator[Blank]:
    """Lines that are marked FILL IN; of JSON, which has no comments, those with a placeholder."""
    lines = (root / file).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if file.endswith(".json"):
            for name, meaning in MEANINGS.items():
                if name in line:
                    yield Blank(file=file, line=number, text=meaning, filled=False)
        elif mark := re.search(r"FILL IN: ?(.*)$", line):
            filled = not any(PLACEHOLDER.search(one) for one in _covered(lines, number))
            yield Blank(file=file, line=number, text=mark[1].strip(), filled=filled)


def unmarked_placeholders(root: Path, file: str) -> Iterator[int]:
    """Lines with a placeholder that no FILL IN announces."""
    if file.endswith(".json"):
        return
    lines = (root / file).read_text().splitlines()
    marked = [number for number, line in enumerate(lines, start=1) if "FILL IN" in line]
    covered = {number + offset for number in marked for offset in range(len(_covered(lines, number)))}
    for number, line in enumerate(lines, start=1):
        # Comments may speak of placeholders.
        if number not in covered and PLACEHOLDER.search(re.split(r"(?:^|\s)#", line)[0]):
            yield number


def _covered(lines: list[str], number: int) -> list[str]:
    """The lines that a mark speaks of: its own, and behind a line of comment all up to the next empty one."""
    if not lines[number - 1].lstrip().startswith("#"):
        return [lines[number - 1]]
    end = next((n for n in range(number, len(lines)) if not lines[n].strip()), len(lines))
    return lines[number - 1 : end]
