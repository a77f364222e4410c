"""Tables that people export: CSV (RFC 4180) as spreadsheets and pandas write it, and Parquet, into rows of texts."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twostream_ray.errors import CatalogError
from twostream_ray.redaction import one_line

SPLIT_TITLES = ("split", "splits", "subset", "set", "partition")
"""How a column of splits may be called; the first is taken where there are several."""

_DELIMITERS = (",", "\t", ";", "|")
_OF_EXCEL = re.compile(r'\A"?sep=[^\r\n]"?(?=[\r\n])', re.IGNORECASE)
"""A line in front of the titles by which Excel knows how values are separated."""
_ARCHIVES = (b"PK\3\4", b"\xd0\xcf\x11\xe0", b"\x1f\x8b")
"""How workbooks and compressed files begin."""
_PARQUET = b"PAR1"
_PARQUET_SUFFIXES = (".parquet", ".pq")
_MOST_ROWS = 50_000_000
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNNAMED = re.compile(r"|unnamed: \d+|__index_level_\d+__")
"""Titles of the column in which pandas writes its row numbers."""
_MISSING = frozenset({"nan", "<na>", "#n/a", "nat"})
"""What pandas and spreadsheets write for a cell without a value, where no word would be spelt so."""
_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The columns of a table that are wanted, row by row."""

    rows: list[tuple[str, dict[str, str]]]
    """(where, column -> text) of each row; a cell without a value is ""."""
    columns: frozenset[str]
    """Wanted columns that there are."""
    unread: tuple[str, ...]
    """Titles of the columns that were not asked for."""


def text_of(content: bytes, *, where: str) -> str:
    """A text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; the mark is dropped.

    Raises:
        CatalogError: it is none.
    """
    coding = next((coding for mark, coding in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(coding)
    except UnicodeDecodeError as error:
        raise CatalogError(f"{where}: a UTF-8 text was wanted, byte {error.start} is not: save it as UTF-8") from error
    if "\0" in text:
        raise CatalogError(f"{where}: a UTF-8 text was wanted, it holds zero bytes: save it as UTF-8")
    return text


def read_rows(
    uri: str, *, read_bytes: Callable[[str], bytes], columns: Sequence[str], optional: Sequence[str] = ()
) -> Table:
    """The `columns` of a CSV or Parquet file, and the `optional` ones that it has.

    Titles may be in any case, between blanks, and "split" may be called as `SPLIT_TITLES` says. A CSV file may separate
    by comma, tab, semicolon or bar.

    Raises:
        CatalogError: a column is missing or there twice, a row has more values than there are titles, a quotation mark
            is not closed, or it is no such file.
    """
    content = read_bytes(uri)
    if content.startswith(_PARQUET) or uri.lower().endswith(_PARQUET_SUFFIXES):
        return _read_parquet(uri, content, columns=columns, optional=optional)
    if content.startswith(_ARCHIVES):
        raise CatalogError(
            f"{uri}: a CSV or Parquet file was wanted, it is a workbook or an archive: export the table as CSV"
        )
    text = _OF_EXCEL.sub("", text_of(content, where=uri), count=1)
    return _read_csv(uri, text, columns=columns, optional=optional)


def _read_csv(uri: str, text: str, *, columns: Sequence[str], optional: Sequence[str]) -> Table:
    records = _records(uri, text, _delimiter(uri, text, columns=columns))
    _, header = next(records, ("", []))
    positions, unread = _find(uri, header, columns=columns, optional=optional)
    rows = []
    for where, values in records:
        if any(values[len(header) :]):
            raise CatalogError(f"{where}: wanted {len(header)} values, got more")
        row = {name: _cell(values[at] if at < len(values) else "") for name, at in positions.items()}
        if broken := next((value for value in row.values() if len(value.splitlines()) > 1), None):
            raise CatalogError(
                f"{where}: values without line ends were wanted, got {broken[:_SHOWN]!r}: close the quotation mark"
            )
        rows.append((where, row))
    return Table(rows=rows, columns=frozenset(positions), unread=unread)


def _delimiter(uri: str, text: str, *, columns: Sequence[str]) -> str:
    """The sign between the titles: the first one that gives the wanted columns, else the one that gives most."""
    counts = {}
    for delimiter in _DELIMITERS:
        header: list[str] = []
        with suppress(CatalogError):  # quotation marks are right with one of them alone
            _, header = next(_records(uri, text, delimiter), ("", []))
        if set(columns) <= {_key(title) for title in header}:
            return delimiter
        counts[delimiter] = len(header)
    return max(counts, key=lambda delimiter: counts[delimiter])


def _records(uri: str, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Values, without blanks around them, of every line that has some, with where they are."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        begun = reader.line_num + 1
        try:
            values = [value.strip() for value in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise CatalogError(f"{uri}, line {begun}: a CSV file was wanted ({error})") from None
        if any(values):
            yield f"{uri}, line {reader.line_num}", values


def _read_parquet(uri: str, content: bytes, *, columns: Sequence[str], optional: Sequence[str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows > _MOST_ROWS:
            raise CatalogError(f"{uri}: at most {_MOST_ROWS} rows were wanted, it has {file.metadata.num_rows}")
        table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{uri}: a Parquet file was wanted ({one_line(error, longest=120)})") from error
    positions, unread = _find(uri, table.column_names, columns=columns, optional=optional)
    read = {}
    for name, at in positions.items():
        try:
            read[name] = table.column(at).to_pylist()
        except (OverflowError, ValueError) as error:  # dates beyond Python's, texts that are none
            why = one_line(error, longest=120)
            raise CatalogError(
                f"{uri}: values that can be written as UTF-8 text were wanted in {name} ({why})"
            ) from error
    rows = []
    for number in range(table.num_rows):
        where = f"{uri}, row {number + 1}"
        rows.append((where, {name: _text(values[number], name, where=where) for name, values in read.items()}))
    return Table(rows=rows, columns=frozenset(positions), unread=unread)


def _text(value: Any, name: str, *, where: str) -> str:
    """A value as text; a list of splits is joined by ";"."""
    if isinstance(value, bytes):
        return text_of(value, where=f"{where}, {name}").strip()
    if isinstance(value, list) and name == "split":
        return ";".join(_text(one, name, where=where) for one in value)
    if isinstance(value, list | dict):
        raise CatalogError(f"{where}: one value was wanted in {name}, got {str(value)[:_SHOWN]}")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return _cell(str(value).strip())


def _cell(text: str) -> str:
    return "" if text.casefold() in _MISSING else text


def _key(title: str) -> str:
    return title.strip().casefold()


def _find(
    uri: str, header: Sequence[str], *, columns: Sequence[str], optional: Sequence[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Wanted column -> its position, and the titles of the others."""
    keys = [_key(title) for title in header]
    positions: dict[str, int] = {}
    for name in (*columns, *optional):
        titles = SPLIT_TITLES if name == "split" else (name,)
        title = next((title for title in titles if title in keys), None)
        if title is None:
            continue
        if keys.count(title) > 1:
            raise CatalogError(f"{uri}: the column {title} is there {keys.count(title)} times: leave one")
        positions[name] = keys.index(title)
    missing = [name for name in columns if name not in positions]
    if missing:
        raise CatalogError(
            f"{uri}: wanted the columns {', '.join(columns)}, {missing[0]} is missing, "
            f"found {', '.join(title for title in header if title)[:1000] or 'none'}"
        )
    taken = set(positions.values())
    others = (at for at, key in enumerate(keys) if at not in taken and not _UNNAMED.fullmatch(key))
    return positions, tuple(header[at] for at in others)
