"""The file of predictions: every column of the data, then the prediction and its scores."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from lora_drop.errors import UserError
from lora_drop.files import csv_cell, replacing, write_csv_row, write_through
from lora_drop.runs.store import OUTPUTS, RECORDS
from lora_drop.tasks.own.tables import Row
from lora_drop.tasks.own.values import as_text

FORMATS = (".csv", ".tsv", ".jsonl")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Failures of writing to an open file."""


def check_target(to: Path, data: Iterable[Path]) -> None:
    """Raise UserError unless predictions may be written to a file: a new one, or one of predictions."""
    if to.is_dir():
        raise UserError(f"--to {to} is a folder. Name a file in it.")
    if to.suffix not in FORMATS:
        raise UserError(f"Predictions cannot be written as {to.name}. Formats: {', '.join(FORMATS)}")
    if to.name in (*OUTPUTS, *RECORDS) and (to.parent / "config.yaml").is_file():
        raise UserError(
            f"--to {to} is a file of the run itself, which predictions must not replace. Name another file."
        )
    if to.resolve() in {path.resolve() for path in data}:
        raise UserError(f"--to names a file of the data ({to}), which predictions must not replace. Name another file.")
    if to.exists() and not _is_ours(to):
        raise UserError(f"--to {to} exists, and has no predictions. Name another file, or remove it.")


def make_room(to: Path) -> None:
    """Make the folder of a file. Raise UserError if nothing can be written there."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=to.parent).close()
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error.strerror}). Name another file with --to.") from error


def _is_ours(path: Path) -> bool:
    """Return True for a file of predictions, which new ones may replace, and for an empty one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return not first or re.search(r'(^|[,\t"])prediction([,\t"]|$)', first.rstrip()) is not None


@contextmanager
def writing(path: Path, columns: Sequence[str], labels: Sequence[str]) -> Iterator[Writer]:
    """Write a file of predictions, which appears under its name when it is complete.

    A lone surrogate in a column that the run does not read is written as its escape.
    """
    try:
        with replacing(path) as temporary:
            with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield Writer(file, path.suffix, columns, labels)
            write_through(temporary)
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:  # of another file, or of no file
            raise
        raise UserError(f"{path} cannot be written ({error.strerror}). Name another file with --to.") from error


class Writer:
    """Writes one row at a time: all columns of the data, then the prediction and scores."""

    def __init__(self, file: TextIO, suffix: str, columns: Sequence[str], labels: Sequence[str]):
        self.columns, self.labels = columns, labels
        self.file, self.dialect = file, {".csv": "excel", ".tsv": "excel-tab"}.get(suffix)
        probabilities = [f"P({name})" for name in self.labels] if self.dialect else ["scores"]
        ours = ["prediction", *(["score", *probabilities] if self.labels else [])]
        self.names = _beside(columns, ours)
        if self.dialect:
            write_csv_row(file, map(csv_cell, [*self.names.values(), *ours]), self.dialect)

    def write(self, row: Row, found: dict[str, Any]) -> None:
        """Write a row of the data with its `prediction` and, for labels, `score` and `scores` (`Predictor.predict`)."""
        if self.dialect is None:
            given = {shown: _in_json(row.get(name)) for name, shown in self.names.items()}
            self.file.write(json.dumps({**given, **found}, ensure_ascii=False, default=str) + "\n")
            return
        prediction = found["prediction"]
        cells = [_cell(prediction) if isinstance(prediction, (list, str)) else prediction]
        if self.labels:
            cells += [f"{value:.6g}" for value in (found["score"], *found["scores"].values())]
        cells = [*(_cell(row.get(name)) for name in self.columns), *cells]
        write_csv_row(self.file, [csv_cell(str(each)) for each in cells], self.dialect)


def _beside(names: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Return an output name for each column of the data that does not clash with the columns `ours` of predictions."""
    found: dict[str, str] = {}
    for name in names:
        shown = name
        while shown in ours or shown in found.values() or (shown != name and shown in names):
            shown = f"given_{shown}"
        found[name] = shown
    return found


def _in_json(value: Any) -> Any:
    """Return a value with null for NaN (a missing number of a table) and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    """Return a value as the text of a CSV cell: a list of names as `a;b`, turns of a conversation as JSON."""
    names = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return ";".join(value) if names else as_text(value)
