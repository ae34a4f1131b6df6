"""Readers of the official files. A row that cannot be read is an error that names file, line and reason."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lora_drop.errors import UserError
from lora_drop.files import file_digest
from lora_drop.tasks.base import Source

T = TypeVar("T")
HALF = re.compile(r"[\ud800-\udfff]")
"""A lone surrogate, which JSON can represent but UTF-8 cannot."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte-order marks of UTF-16 files."""
OFFICIAL = "Is it the official file of this task, unaltered?"


def official_file(source: Source, name: str, split: str, hub: str, advice: str = "") -> Path | None:
    """Return the path of the official file of a split, or None if its rows come from the Hub (see `Source`).

    Raises UserError if the file is missing from a folder that was named for this run.
    """
    if source.data_dir is None:
        return None
    path = source.data_dir / name
    if path.is_file():
        source.origins[split] = {"file": name, "content": official_content(path)}
        return path
    hint = _elsewhere(source.data_dir, name)
    if source.named:
        raise UserError(
            f"{path} does not exist.{hint} The folder given with --data-dir (data_dir) must contain {name}. Without "
            f"--data-dir the rows come from the Hub ({hub}).{advice}"
        )
    source.report.notice(f"{path} does not exist: the {split} rows are on the Hub ({hub}).{hint}")
    return None


def official_content(path: Path) -> str:
    """Return a hash of a file's content."""
    found = path.stat()
    return _hashed(path.absolute(), found.st_size, found.st_mtime_ns)


@cache
def _hashed(path: Path, _size: int, _changed: int) -> str:
    return file_digest(path)


def _elsewhere(folder: Path, name: str) -> str:
    """Return a hint at a nearby folder that has the file; empty if there is none."""
    near = folder.absolute()
    inside = sorted(path for path in near.iterdir() if path.is_dir())
    for candidate in (*near.parents[:2], *inside):
        if (candidate / name).is_file():
            return f" Did you mean --data-dir {candidate}?"
    first, _, rest = name.partition("/")
    if (near / rest).is_file():
        return f" {near} holds {rest}: rename it to {first} and name the folder above it."
    return ""


def read_text(path: Path) -> str:
    """Return a file's UTF-8 text without byte-order mark, line ends unchanged. Raises UserError if it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wide = " It looks like UTF-16, which Excel calls Unicode text." if content[:2] in UTF_16 else ""
        raise UserError(
            f"{path}, line {line}: not UTF-8 ({error.reason} at byte {error.start}).{wide} Save it as UTF-8."
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line), split only at line feeds: str.splitlines would also split a text at U+2028."""
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        yield number, line.removesuffix("\r")


def read_tsv(
    path: Path, columns: Sequence[str], header: Sequence[str], skip_short: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells in the order of `columns`) of a tab-separated file WITHOUT quoting: a quote is text.

    Args:
        path: The file; Windows line ends are accepted.
        columns: Names of the columns to return.
        header: Names of all columns; if empty, they are in the first line.
        skip_short: Skip lines with fewer cells instead of refusing the file.

    Raises:
        UserError: For a missing column, or a line with a different number of cells than the header.
    """
    for number, line in read_lines(path):
        cells = line.split("\t")
        if not header:
            header = cells
            _check_columns(path, header, columns)
        elif len(cells) == len(header):
            yield number, [cells[header.index(name)] for name in columns]
        elif not (skip_short and len(cells) < len(header)):
            raise _another_number(path, number, cells, header)


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells in the order of `columns`) of a comma-separated file with a header.

    A quoted cell may contain commas, quotes and line ends. Raises UserError for a missing column, a row with a
    different number of cells than the header, or an unclosed quote.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, columns)]
        _check_columns(path, header, columns)
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, [row[header.index(name)] for name in columns]
            elif row:  # skip empty lines
                raise _another_number(path, reader.line_num, row, header)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from error


def _check_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{path}, line 1: there is no column {missing[0]!r}, only {', '.join(header)}. {OFFICIAL}")


def _another_number(path: Path, line: int, cells: Sequence[str], header: Sequence[str]) -> UserError:
    return UserError(
        f"{path}, line {line}: {len(cells)} cells where {len(header)} are expected ({', '.join(header)}). {OFFICIAL}"
    )


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file with one JSON object per line; skip empty lines. Raises UserError."""
    for number, line in read_lines(path):
        if line.strip():
            row = parse_json(path, line, number)
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a JSON object is expected, not {type(row).__name__}")
            yield number, row


def read_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, item) of a file that is one JSON list. Raises UserError naming the line if it is not."""
    text = read_text(path)
    items = parse_json(path, text)
    if not isinstance(items, list):
        raise UserError(f"{path}, line 1: a JSON list is expected")
    between, decoder = re.compile(r"[\s,]*"), json.JSONDecoder()
    line, end = 1, text.index("[") + 1
    for item in items:  # decode again, only to find the position
        start = between.match(text, end).end()  # type: ignore[union-attr]  # it always matches
        line += text.count("\n", end, start)
        yield line, item
        _, end = decoder.raw_decode(text, start)
        line += text.count("\n", start, end)


def parse_json(path: Path, text: str, first_line: int = 1) -> Any:
    """Return the value of a JSON text that begins at `first_line` of a file. Raises UserError naming the line."""
    try:
        return DISTINCT.decode(text)
    except _RepeatedKey as error:
        raise UserError(f"{path}, from line {first_line}: an object has the key {str(error)!r} twice") from error
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or thousands of brackets
        raise UserError(f"{path}, from line {first_line}: not JSON that can be read ({error})") from error


class _RepeatedKey(Exception):
    """A key that an object has twice, so that one of its values would be lost."""


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKey(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found


DISTINCT = json.JSONDecoder(object_pairs_hook=_with_distinct_keys)


def some(path: Path, rows: Iterable[T]) -> list[T]:
    """Return the rows of a file as a list. Raises UserError if there are none."""
    listed = list(rows)
    if not listed:
        raise UserError(f"{path} has no rows.")
    return listed


def text_in(path: Path, line: int, row: Any, key: str) -> str:
    """Return the text under a key of a JSON object. Raises UserError naming the line if there is none."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str):
        found = "is missing" if value is None else f"must be a text, not {type(value).__name__}"
        raise UserError(f"{path}, line {line}: {key!r} {found}")
    if HALF.search(value):
        raise UserError(f"{path}, line {line}: {key!r} holds half a character (a lone surrogate such as \\ud83d)")
    return value


def check_target(path: Path, line: int, target: str, what: str) -> str:
    """Return a target text. Raises UserError if it is blank, because the row is then broken."""
    if not target.strip():
        raise UserError(f"{path}, line {line}: the {what} is empty")
    return target


def label_index(path: Path, line: int, text: str, labels: Sequence[str]) -> int:
    """Return the index of a label name. Raises UserError naming the line if it is not one of `labels`."""
    if text not in labels:
        raise UserError(f"{path}, line {line}: unknown label {text!r}; allowed: {', '.join(labels)}")
    return labels.index(text)


def number_in(path: Path, line: int, text: str, low: float, high: float) -> float:
    """Return a number between `low` and `high`. Raises UserError naming the line otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UserError(f"{path}, line {line}: {text!r} is not a number from {low:g} to {high:g}")
    return value
