"""Tables in common formats: CSV, TSV, JSON, JSON Lines, Parquet. They are read row by row; every row has a place."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from datasets import ClassLabel, Features

from lora_drop.errors import UserError, closest, first_line
from lora_drop.faults import foreign
from lora_drop.files import digest, file_digest
from lora_drop.tasks.files import parse_json, read_json_list, read_text

Row = Mapping[str, Any]
Placed = tuple[str, Row]
"""The place of a row ("reviews.csv, line 17"), and its values by column."""
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
FORMATS = "csv, tsv, json, jsonl or parquet"
LONGEST_CELL = 2**24
"""Limit for a CSV cell, in characters. Python's default, 131,072, is less than a chapter of a book."""
AT_A_TIME = 1000
"""Number of rows of a Parquet file in memory at a time."""


@dataclass(frozen=True)
class Table:
    """The rows of one split."""

    name: str
    """Name in messages."""
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Placed]]
    """Reads the rows from the beginning. A missing value is None."""
    identity: str
    """Digest that identifies the content."""

    def column(self, name: str, role: str) -> str:
        """Return `name` if it is a column. Raises UserError naming all of them otherwise."""
        if name not in self.columns:
            raise UserError(
                f"{self.name} has no column {name!r}, which {role} names.{closest(name, list(self.columns))} "
                f"Columns: {', '.join(self.columns)}"
            )
        return name


def open_table(paths: Sequence[Path]) -> Table:
    """Open the files of a split as one table.

    Raises:
        UserError: For a file in an unknown format, without rows, without column names, or with other columns than the
            first file.
    """
    tables = [_open(path) for path in paths]
    first = tables[0]
    for other in tables[1:]:
        if set(other.columns) != set(first.columns):
            raise UserError(
                f"The columns of {other.name} ({', '.join(other.columns)}) differ from those of {first.name} "
                f"({', '.join(first.columns)})."
            )
    name = first.name if len(tables) == 1 else f"{first.name} and {len(tables) - 1} more"
    return Table(name, first.columns, lambda: chain.from_iterable(table.rows() for table in tables), identity_of(paths))


def identity_of(paths: Sequence[Path]) -> str:
    """Return a digest that identifies the content of the files of a split."""
    return digest([file_digest(path) for path in paths])


def _open(path: Path) -> Table:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not a table that can be read. Give {FORMATS}.")
    reader = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _json)
    if path.suffix.lower() == ".tsv" and _quotes_are_text(path):
        reader = partial(_csv, quoted=False)
    columns: dict[str, None] = {}
    for _, row in islice(_decoded(path, reader), None if reader is _json else 1):  # JSON objects may differ in keys
        columns |= dict.fromkeys(row)
    if not columns:
        raise UserError(f"{path} has no rows.")
    return Table(str(path), tuple(columns), lambda: _decoded(path, reader), identity="")  # set in open_table


def _decoded(path: Path, reader: Callable[[Path], Iterator[Placed]]) -> Iterator[Placed]:
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        read_text(path)  # raises an error that names the line
        raise


def _csv(path: Path, quoted: bool = True) -> Iterator[Placed]:
    """Yield the rows of a CSV file. The separator is a tab in .tsv, else the first of `,` `;` tab `|` in the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = "\t" if path.suffix.lower() == ".tsv" else _separator(file.readline())
        file.seek(0)
        reader = _reader(file, separator, quoted)
        line = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(f"{path}, line 1", header)
            line = reader.line_num + 1
            for cells in reader:
                place, line = f"{path}, line {line}", reader.line_num + 1
                if not cells:  # an empty line
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        f"{place}: {len(cells)} cells where the header has {len(header)} ({', '.join(header)}). "
                        "A text that holds the separator, quotes or line ends must be in double quotes."
                    )
                yield place, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: not readable as CSV ({error}). Is a quote not closed?") from error


def _reader(file: TextIO, separator: str, quoted: bool) -> Any:
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)


def _quotes_are_text(path: Path) -> bool:
    """Return True for a tab-separated file, such as GLUE's, that has one row per line only if quotes are plain text.

    With quoting, an opening quote that is never closed would swallow the rows that follow.
    """
    try:
        return not _lines_are_rows(path, quoted=True) and _lines_are_rows(path, quoted=False)
    except UnicodeDecodeError:  # reported when the rows are read
        return False


def _lines_are_rows(path: Path, quoted: bool) -> bool:
    """Return True if each line of a tab-separated file is empty or has the same number of cells as the first."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _reader(file, "\t", quoted)
        try:
            width = len(next(reader, []))
            return all(
                reader.line_num == line and len(cells) in (0, width) for line, cells in enumerate(reader, start=2)
            )
        except csv.Error:
            return False


def _separator(header: str) -> str:
    return next((sign for sign in (",", ";", "\t", "|") if sign in header), ",")


def _check_header(place: str, header: Sequence[str]) -> None:
    if not any(header):
        raise UserError(f"{place}: the first line must hold the names of the columns.")
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if twice:
        raise UserError(f"{place}: two columns are named {twice[0]!r}.")


def _json(path: Path) -> Iterator[Placed]:
    """Yield the objects of a JSON list, or of a file with one object per line."""
    with path.open(encoding="utf-8-sig") as file:
        start = next((line.lstrip()[:1] for line in file if line.strip()), "")
    items = read_json_list(path) if start == "[" else _json_lines(path)
    for line, item in items:
        place = f"{path}, line {line}"
        if not isinstance(item, dict):
            raise UserError(f"{place}: a JSON object is expected, not {type(item).__name__}")
        if item and all(isinstance(cell, dict) and cell and all(map(str.isdigit, cell)) for cell in item.values()):
            raise UserError(
                f"{place}: an object for each row is expected, and this one holds columns. pandas writes rows with "
                "orient='records'."
            )
        yield place, item


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, parse_json(path, line.rstrip(), number)


def classes_of(features: Features) -> dict[str, ClassLabel]:
    """Return the columns whose cells are indices of named classes."""
    return {column: kind for column, kind in features.items() if isinstance(kind, ClassLabel)}


def named(place: str, row: dict[str, Any], classes: Mapping[str, ClassLabel]) -> dict[str, Any]:
    """Return a row with the names of its classes instead of their indices; -1 is the index of a missing label."""
    for column, kind in classes.items():
        index = row[column]
        if index is not None and index >= len(kind.names):
            raise UserError(f"{place}, column {column!r}: class {index} has no name, only {len(kind.names)} have one")
        row[column] = None if index is None or index < 0 else kind.names[index]
    return row


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema, classes, number = file.schema_arrow, {}, 0
            _check_header(str(path), schema.names or [path.name])
            if b"huggingface" in (schema.metadata or {}):  # the data set that wrote it has described the columns
                with foreign(f"{path} is not readable as Parquet"):
                    classes = classes_of(Features.from_arrow_schema(schema))
            for batch in file.iter_batches(AT_A_TIME):
                for row in _as_rows(path, batch, number):
                    number += 1
                    place = f"{path}, row {number}"
                    yield place, named(place, row, classes)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not readable as Parquet ({first_line(error)}).") from error


def _as_rows(path: Path, batch: Any, before: int) -> list[dict[str, Any]]:
    """Return the rows of a batch. Bytes that are UTF-8 are texts, as Spark and Impala write them.

    Raises UserError for a date that Python cannot hold; `before` is the number of earlier rows.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:  # a ValueError, too, and no date
        raise
    except (OverflowError, ValueError) as error:  # such as a database's "infinity"
        where = f"rows {before + 1} to {before + batch.num_rows}"
        raise UserError(
            f"{path}, {where}: a date or a time is outside the years 1 to 9999 ({first_line(error)}). Remove that column, "
            "or write it as text."
        ) from error
    for row in rows:
        for name, value in row.items():
            if isinstance(value, bytes):
                with suppress(UnicodeDecodeError):
                    row[name] = value.decode()
    return rows
