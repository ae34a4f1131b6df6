"""Reading rows: official tab-separated files, or the Hub. A row that cannot be read is an error that names file, line and reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_drop.errors import UserError
from lora_drop.tasks.base import Source


def official_file(source: Source, name: str, split: str, hub: str, advice: str = "") -> Path | None:
    """Return the path of the official file of a split, or None where its rows come from the Hub (`source` says when).

    Raises UserError if the file is missing from a folder that was named for this run.
    """
    if source.data_dir is None:
        return None
    path = source.data_dir / name
    if path.is_file():
        source.origins[split] = {"file": name}
        return path
    if source.named:
        raise UserError(
            f"{path} does not exist.{_elsewhere(source.data_dir, name)} The folder that is named with --data-dir (data_dir) must hold {name}. "
            f"Without --data-dir the rows come from the Hub ({hub}).{advice}"
        )
    hint = _elsewhere(source.data_dir, name)
    source.report.notice(f"{path} does not exist: {split} rows are those of the Hub ({hub}).{hint}")
    return None


def _elsewhere(folder: Path, name: str) -> str:
    """Say which folder should have been named, where it is one near the one that was."""
    near = folder.absolute()
    inside = sorted(path for path in near.iterdir() if path.is_dir())
    for candidate in (*near.parents[:2], *inside):
        if (candidate / name).is_file():
            return f" Did you mean --data-dir {candidate}?"
    first, _, rest = name.partition("/")
    if (near / rest).is_file():
        return f" {near} holds {rest}: rename it to {first} and name the folder above it."
    return ""


def read_tsv(
    path: Path, header: bool = True, columns: int | None = None, skip_short: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column name) of a tab-separated file WITHOUT quoting: a quote inside a sentence is text.

    Args:
        path: the file; a byte-order mark and Windows line ends are tolerated.
        header: whether the first line names the columns; else they are called "0", "1", …
        columns: number of columns of a file without header.
        skip_short: leave out lines with fewer columns instead of refusing the file.

    Raises:
        UserError: for bytes that are not UTF-8 and for a line with another number of columns than the header.
    """
    names = [] if header else [str(number) for number in range(columns or 0)]
    for number, line in enumerate(_lines(path), 1):
        cells = line.split("\t")
        if number == 1 and header:
            names = cells
        elif skip_short and len(cells) < len(names):
            continue
        elif len(cells) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns where {len(names)} are expected ({', '.join(names)}). "
                "Is it the official file, unaltered?"
            )
        else:
            yield number, dict(zip(names, cells, strict=True))


def _lines(path: Path) -> Iterator[str]:
    """Split at line feeds only: a sentence may hold other characters that str.splitlines takes for line ends."""
    content = path.read_bytes()
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}). Is it the official file, unaltered?"
            ) from error
        yield text.removesuffix("\r")


def cell(path: Path, row: dict[str, str], column: str) -> str:
    """Return a cell. Raises UserError if the file has no such column."""
    if column not in row:
        raise UserError(
            f"{path}: there is no column {column!r}, only {', '.join(row)}. Is it the official file of this task?"
        )
    return row[column]


def label_index(path: Path, number: int, text: str, labels: Sequence[str]) -> int:
    """Return the index of a label name. Raises UserError naming the line if it is not one of `labels`."""
    if text not in labels:
        raise UserError(f"{path}, line {number}: unknown label {text!r}; allowed: {', '.join(labels)}")
    return labels.index(text)


def number_in(path: Path, number: int, text: str, low: float, high: float) -> float:
    """Return a number between `low` and `high`. Raises UserError naming the line otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UserError(f"{path}, line {number}: {text!r} is not a number from {low:g} to {high:g}")
    return value
