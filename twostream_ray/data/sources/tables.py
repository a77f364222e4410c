"""Table reader: CSV (RFC 4180, and the variants of Excel and pandas) and Parquet files as rows of strings."""

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
"""Accepted titles of the split column, in order of preference."""

_DELIMITERS = (",", "\t", ";", "|")
_OF_EXCEL = re.compile(r'\A"?sep=[^\r\n]"?(?=[\r\n])', re.IGNORECASE)
"""Excel's separator declaration before the header line."""
_ARCHIVES = (b"PK\3\4", b"\xd0\xcf\x11\xe0", b"\x1f\x8b")
"""Magic numbers of workbooks and compressed files."""
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
"""Titles of pandas' index column."""
_MISSING = frozenset({"nan", "<na>", "#n/a", "nat"})
"""Spellings of a missing value by pandas and spreadsheets that cannot be words."""
_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The requested columns of a table, row by row."""

    rows: list[tuple[str, dict[str, str]]]
    """(file and line, column -> text) of each row; a cell without a value is ""."""
    columns: frozenset[str]
    """Requested columns that exist."""
    unread: tuple[str, ...]
    """Titles of the other columns."""


def text_of(content: bytes, *, where: str) -> str:
    """Decode UTF-8 text, or UTF-16 or UTF-32 text with a byte order mark, without the mark.

    Raises:
        CatalogError: the bytes are not such text.
    """
    coding = next((coding for mark, coding in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(coding)
    except UnicodeDecodeError as error:
        raise CatalogError(f"{where}: expected UTF-8 text, byte {error.start} is invalid: save it as UTF-8") from error
    if "\0" in text:
        raise CatalogError(f"{where}: expected UTF-8 text, found zero bytes: save it as UTF-8")
    return text


def read_rows(
    uri: str, *, read_bytes: Callable[[str], bytes], columns: Sequence[str], optional: Sequence[str] = ()
) -> Table:
    """Read the `columns` of a CSV or Parquet file, and the `optional` ones that exist.

    Titles are case-insensitive and stripped; "split" has the aliases `SPLIT_TITLES`. The delimiter of a CSV file may be
    a comma, tab, semicolon or vertical bar.

    Raises:
        CatalogError: a missing or repeated column, a row with more values than titles, an unclosed quotation mark, or
            another kind of file.
    """
    content = read_bytes(uri)
    if content.startswith(_PARQUET) or uri.lower().endswith(_PARQUET_SUFFIXES):
        return _read_parquet(uri, content, columns=columns, optional=optional)
    if content.startswith(_ARCHIVES):
        raise CatalogError(
            f"{uri}: expected a CSV or Parquet file, found a workbook or an archive: export the table as CSV"
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
                f"{where}: expected values without line breaks, got {broken[:_SHOWN]!r}: close the quotation mark"
            )
        rows.append((where, row))
    return Table(rows=rows, columns=frozenset(positions), unread=unread)


def _delimiter(uri: str, text: str, *, columns: Sequence[str]) -> str:
    """The first delimiter that yields the requested columns, otherwise the one that yields most titles."""
    counts = {}
    for delimiter in _DELIMITERS:
        header: list[str] = []
        with suppress(CatalogError):  # quoting may be valid with one of the delimiters only
            _, header = next(_records(uri, text, delimiter), ("", []))
        if set(columns) <= {_key(title) for title in header}:
            return delimiter
        counts[delimiter] = len(header)
    return max(counts, key=lambda delimiter: counts[delimiter])


def _records(uri: str, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(file and line, stripped values) of every non-empty record."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        begun = reader.line_num + 1
        try:
            values = [value.strip() for value in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise CatalogError(f"{uri}, line {begun}: malformed CSV ({error})") from None
        if any(values):
            yield f"{uri}, line {reader.line_num}", values


def _read_parquet(uri: str, content: bytes, *, columns: Sequence[str], optional: Sequence[str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows > _MOST_ROWS:
            raise CatalogError(f"{uri}: at most {_MOST_ROWS} rows are supported, it has {file.metadata.num_rows}")
        table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{uri}: not a readable Parquet file ({one_line(error, longest=120)})") from error
    positions, unread = _find(uri, table.column_names, columns=columns, optional=optional)
    read = {}
    for name, at in positions.items():
        try:
            read[name] = table.column(at).to_pylist()
        except (OverflowError, ValueError) as error:  # dates out of Python's range, invalid UTF-8
            why = one_line(error, longest=120)
            raise CatalogError(f"{uri}: column {name} has values that cannot be written as text ({why})") from error
    rows = []
    for number in range(table.num_rows):
        where = f"{uri}, row {number + 1}"
        rows.append((where, {name: _text(values[number], name, where=where) for name, values in read.items()}))
    return Table(rows=rows, columns=frozenset(positions), unread=unread)


def _text(value: Any, name: str, *, where: str) -> str:
    """A Parquet value as text; a list of splits is joined by ";"."""
    if isinstance(value, bytes):
        return text_of(value, where=f"{where}, {name}").strip()
    if isinstance(value, list) and name == "split":
        return ";".join(_text(item, name, where=where) for item in value)
    if isinstance(value, list | dict):
        raise CatalogError(f"{where}: expected a single value in {name}, got {str(value)[:_SHOWN]}")
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
    """Requested column -> its position, and the titles of the other columns."""
    keys = [_key(title) for title in header]
    positions: dict[str, int] = {}
    for name in (*columns, *optional):
        titles = SPLIT_TITLES if name == "split" else (name,)
        title = next((title for title in titles if title in keys), None)
        if title is None:
            continue
        if keys.count(title) > 1:
            raise CatalogError(f"{uri}: the column {title} occurs {keys.count(title)} times: keep one")
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
