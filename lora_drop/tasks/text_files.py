"""Reading the generation benchmarks: CSV, JSON and JSONL whose errors name file, line and reason."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError


def read_text(path: Path) -> str:
    """Return a file's text: UTF-8, a byte-order mark left out, line ends as they are. Raises UserError for other bytes."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells in the order of `columns`) of a comma-separated file with a header.

    A quoted cell may hold commas, quotes and line ends. Raises UserError for a missing column, a row with another number of
    cells than the header, and quotes that do not close.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    try:
        for row in reader:
            if not header:
                header = [name.strip().lower() for name in row]
                _check_columns(path, header, columns)
            elif len(row) == len(header):
                yield reader.line_num, [row[header.index(name)] for name in columns]
            elif row:  # an empty line is no row
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where {len(header)} are expected ({', '.join(header)})"
                )
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from error


def _check_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(
            f"{path}, line 1: there is no column {missing[0]!r}, only {', '.join(header)}. Is it the official file of this task?"
        )


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file with one JSON object a line; empty lines are skipped. Raises UserError for other lines."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: a text may hold U+2028
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a JSON object is expected, not {type(row).__name__}")
            yield number, row


def read_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, item) of a file that is one JSON list. Raises UserError that names the line where it is not."""
    text = read_text(path)
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    line, counted = 1, 0
    if text[position : position + 1] != "[":
        raise UserError(f"{path}, line 1: a JSON list is expected")
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            item, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
        yield line, item
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise UserError(
                f"{path}, line {text.count(chr(10), 0, position) + 1}: not JSON (the list goes on without a comma or does not end)"
            )


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def text_in(path: Path, line: int, row: Any, key: str) -> str:
    """Return the text under a key of a JSON object. Raises UserError naming the line if there is none."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str):
        found = "is missing" if value is None else f"is no text but {type(value).__name__}"
        raise UserError(f"{path}, line {line}: {key!r} {found}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{path}, line {line}: {key!r} holds half a character (a lone surrogate such as \\ud83d)")
    return value


def check_rows(path: Path, rows: Sequence[Any]) -> None:
    """Raise UserError if there are no rows."""
    if not rows:
        raise UserError(f"{path} has no rows.")


def check_target(path: Path, line: int, target: str, what: str) -> str:
    """Return a text that is to be learnt or compared with. Raises UserError if it is blank: that row is broken."""
    if not target.strip():
        raise UserError(f"{path}, line {line}: the {what} is empty")
    return target
