"""The splits of anybody's data: one file, a folder of files, or a data set of the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset

from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError, closest
from lora_drop.hub.repo import is_name
from lora_drop.tasks.base import Source
from lora_drop.tasks.hub_rows import HubRows
from lora_drop.tasks.own.tables import FORMATS, SUFFIXES, Placed, Table, open_table

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""How files of a split may begin."""
HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<configuration>[\w.-]+))?(?:@(?P<revision>\S+))?")


@dataclass(frozen=True)
class Splits:
    """The rows to train on and, where they are apart, those to evaluate on."""

    train: Table
    validation: Table | None
    share: float | None
    """Share of the training rows that is held out instead; None: the default."""


def find_splits(data: DataConfig, source: Source) -> Splits:
    """Open the tables that `data` names.

    Raises:
        UserError: for what does not exist or cannot be read.
    """
    path = str(data.path)
    share = data.validation if isinstance(data.validation, float) else None
    if share is not None and not 0 < share < 1:
        raise UserError(f"data.validation = {share:g}: a share lies between 0 and 1. Else name a file or a split.")
    train = open_split(path, data.split, source)
    if share is not None:
        return Splits(train, None, share)
    if isinstance(data.validation, str):
        return Splits(train, _named(path, data.validation, source), None)
    files = _files(Path(path)) if Path(path).is_dir() else {}
    held_out = next((name for name in ("validation", "test") if name in files and name != data.split), None)
    return Splits(train, open_table(files[held_out]) if held_out else None, None)


def _named(path: str, validation: str, source: Source) -> Table:
    if Path(validation).suffix.lower() in SUFFIXES:
        return open_split(validation, "", source)
    if Path(path).is_file():
        raise UserError(f"data.validation = {validation!r}: neither a share, nor a file ({FORMATS}).")
    return open_split(path, validation, source)


def open_split(path: str, split: str, source: Source) -> Table:
    """Open a file, a split of a folder, or a split of a data set of the Hub; `source.origins` notes which."""
    place = Path(path).expanduser()
    if place.is_dir():
        files = _files(place)
        if split not in files:
            raise UserError(
                f"The folder {place} has no file of the split {split!r}, only of: {', '.join(files)}.{closest(split, list(files))}"
            )
        return open_table(files[split])
    if place.is_file():
        return open_table([place])
    hub = HUB.fullmatch(path)
    if hub is None or not is_name(hub["name"]) or place.suffix.lower() in SUFFIXES:
        raise UserError(
            f"The data {path} do not exist. Give a file ({FORMATS}), a folder with files named train and validation, or "
            "org/name on the Hub."
        )
    rows = HubRows(hub["name"], hub["configuration"], hub["revision"] or "main")
    found = rows.load(source, split, "", ())
    return table_of(f"{rows}, {split}", found, f"{rows} {split} {source.origins[split]['commit']}")


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split of a folder. Raises UserError if there are none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            begins = re.split(r"[^a-z]", path.name.lower())[0]
            name = next((split for split, names in NAMES.items() if begins in names), begins)
            found.setdefault(name, []).append(path)
    if not found:
        raise UserError(f"The folder {folder} has no data files. Name them train, validation and test ({FORMATS}).")
    return found


def table_of(name: str, rows: Dataset, identity: str) -> Table:
    """Return the rows of a data set of the Hub as a table, classes by their names."""
    classes = {column: kind for column, kind in rows.features.items() if isinstance(kind, ClassLabel)}

    def placed() -> Iterator[Placed]:
        for number, row in enumerate(rows, 1):
            for column, kind in classes.items():
                index = row[column]
                row[column] = None if index is None or index < 0 else kind.int2str(index)  # -1: a test without answers
            yield f"{name}, row {number}", row

    return Table(name, tuple(rows.column_names), placed, identity)
