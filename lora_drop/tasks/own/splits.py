"""The splits of the user's own data: one file, a folder of files, or a data set on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from lora_drop.config.identity import HUB
from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError, closest
from lora_drop.hub.repo import is_name
from lora_drop.tasks.base import Source
from lora_drop.tasks.hub_rows import HubRows
from lora_drop.tasks.own.tables import FORMATS, SUFFIXES, Placed, Table, classes_of, identity_of, named, open_table

NAMES = {
    "train": ("train", "training", "trainset"),
    "validation": (
        *("validation", "valid", "val", "dev", "eval", "evaluation", "development"),
        *("validationset", "validset", "valset", "devset", "evalset"),
    ),
    "test": ("test", "testing", "testset"),
}
"""The first words that the names of a split's files may have."""
Location = tuple[str, str]
"""A location of rows: a file, a folder, or a Hub data set; and the split to read from the latter two."""


@dataclass(frozen=True)
class Splits:
    """The rows to train on and, if separate, those to evaluate on."""

    train: Table
    validation: Table | None
    share: float | None
    """Share of the training rows to hold out instead; None is the default."""


def find_splits(data: DataConfig, source: Source) -> Splits:
    """Open the tables that `data` names.

    Raises:
        UserError: For anything that does not exist or cannot be read.
    """
    train, validation = _places(data)
    share = data.validation if isinstance(data.validation, float) else None
    return Splits(open_split(*train, source), open_split(*validation, source) if validation else None, share)


def local_identities(data: DataConfig) -> dict[str, str]:
    """Return the identities (`Table.identity`) of the training and the evaluation rows, without reading them.

    Rows of the Hub and missing files have no entry.
    """
    train, validation = _places(data)
    files = {name: local_files(*place) for name, place in (("train", train), ("validation", validation or train))}
    return {name: identity_of(paths) for name, paths in files.items() if paths}


def _places(data: DataConfig) -> tuple[Location, Location | None]:
    """Return the locations of the training and the evaluation rows; None for the latter if they are held out."""
    path, validation = str(data.path), data.validation
    if isinstance(validation, float):
        if not 0 < validation < 1:
            raise UserError(
                f"data.validation = {validation:g}: a share lies between 0 and 1. Else name a file or a split."
            )
        return (path, data.split), None
    if isinstance(validation, str):
        return (path, data.split), _named(path, validation)
    files = _files(Path(path).expanduser())
    held_out = next((name for name in ("validation", "test") if name in files and name != data.split), None)
    return (path, data.split), (path, held_out) if held_out else None


def _named(path: str, validation: str) -> Location:
    if Path(validation).suffix.lower() in SUFFIXES:
        return validation, ""
    if Path(path).expanduser().is_file():
        raise UserError(f"data.validation = {validation!r}: neither a share, nor a file ({FORMATS}).")
    return path, validation


def local_files(path: str, split: str) -> list[Path]:
    """Return the files of a split: the file itself, those of a folder, or none."""
    place = Path(path).expanduser()
    return [place] if place.is_file() else _files(place).get(_split_of(split), [])


def open_split(path: str, split: str, source: Source) -> Table:
    """Open a file, a split of a folder, or a split of a Hub data set. The Hub's commit is added to `source.origins`."""
    place = Path(path).expanduser()
    if place.is_dir():
        if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
            raise UserError(
                f"{place} was written by datasets.save_to_disk. Write each split as a file instead: "
                'dataset["train"].to_parquet("train.parquet").'
            )
        files = _files(place)
        if not files:
            raise UserError(f"The folder {place} has no data files. Name them train, validation and test ({FORMATS}).")
        if _split_of(split) not in files:
            raise UserError(
                f"The folder {place} has no file of the split {split!r}, only of: {', '.join(files)}.{closest(split, list(files))}"
            )
        return open_table(files[_split_of(split)])
    if place.is_file():
        return open_table([place])
    hub = HUB.fullmatch(path)
    if hub is None or not is_name(hub["name"]) or place.suffix.lower() in SUFFIXES:
        where = "" if place.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"The data {path} do not exist{where}. Give a file ({FORMATS}), a folder with files named train and validation, or "
            "org/name on the Hub."
        )
    rows = HubRows(hub["name"], hub["configuration"], hub["revision"] or "main")
    found = rows.load(source, split, "", ())
    origin = source.origins[split]
    return table_of(
        f"{rows}, {split}", found, f"{hub['name']} ({origin.get('configuration')}) {split} {origin['commit']}"
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split in a folder; nothing if it is not a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES and path.is_file():
            begins = re.split(r"[^a-z]", path.name.lower())[0]
            found.setdefault(_split_of(begins), []).append(path)
    return found


def _split_of(word: str) -> str:
    """Return the split that a word means in the name of a file, or else the word."""
    return next((split for split, names in NAMES.items() if word in names), word)


def table_of(name: str, rows: Dataset, identity: str) -> Table:
    """Return the rows of a Hub data set as a table, with class indices replaced by names."""
    classes = classes_of(rows.features)

    def placed() -> Iterator[Placed]:
        for number, row in enumerate(rows, 1):
            place = f"{name}, row {number}"
            yield place, named(place, row, classes)

    return Table(name, tuple(rows.column_names), placed, identity)
