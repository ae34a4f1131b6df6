"""Make tables and figures from the records of `results/` alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_drop.errors import UserError, closest
from lora_drop.experiments.latex import to_latex
from lora_drop.experiments.markdown import to_markdown
from lora_drop.experiments.records import read_records
from lora_drop.experiments.spreadsheet import to_csv
from lora_drop.experiments.table import Table, build_tables
from lora_drop.files import write_text
from lora_drop.registry import FIGURES

TEXTS = {"table.md": to_markdown, "table.csv": to_csv, "table.tex": to_latex}


def report(
    results: Path,
    experiments: Sequence[str] = (),
    figures: bool = True,
    backbones: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> dict[Path, list[Table]]:
    """Write `table.md`, `table.csv`, `table.tex` and the figures of each experiment and backbone, beside its records.

    Args:
        results: the folder that holds `EXPERIMENT/BACKBONE/*.json`.
        experiments: names; empty means all.
        figures: True to draw them, too.
        backbones: names of the backbones' folders; empty means all.
        tell: receives a sentence about each file that is not a result, and each folder without a table for another
            reason, which are left out; without it, they are errors.

    Returns:
        The tables by folder.

    Raises:
        UserError: if an experiment has no results, no table can be made, or, without `tell`, anything is left out.
    """
    found = sorted({path.parent for path in results.glob("*/*/*.json")})
    names = sorted({folder.parent.name for folder in found})
    for name in experiments:
        if name not in names:
            raise UserError(
                f"{results} holds no results of {name!r}.{closest(name, names)} There are: {', '.join(names) or 'none'}"
            )
    if not found:
        raise UserError(f"{results} holds no results. Make some with: lora-drop reproduce EXPERIMENT")
    written: dict[Path, list[Table]] = {}
    faults: list[UserError] = []
    for folder in found:
        if (experiments and folder.parent.name not in experiments) or (backbones and folder.name not in backbones):
            continue
        try:
            tables = build_tables(read_records(folder, tell))
        except UserError as error:
            if tell is None:
                raise
            faults.append(error)
            continue
        written[folder] = tables
        for name, render in TEXTS.items() if tables else ():  # else each record was left out
            write_text(folder / name, render(tables))
        if figures:
            draw(tables, folder, tell)
    last = faults.pop() if faults and not written else None
    for fault in faults:
        assert tell is not None  # else it was raised
        tell(str(fault))
    if last:
        raise last
    return written


def draw(tables: Sequence[Table], folder: Path, tell: Callable[[str], None] | None = None) -> None:
    """Draw the figures that the experiment names, as PDF and PNG; those after the first table are numbered.

    A figure that is not known, such as one of a plugin that is not loaded, is told to `tell` and left out; without
    `tell`, it raises UserError.

    Leftovers of an earlier, larger report are removed: files with such a name that `save_figure` has written.
    """
    from lora_drop.pruning.picture import is_ours, save_figure

    drawn = set()
    for number, table in enumerate(tables, 1):
        for name in table.figures:
            if tell is not None and name not in FIGURES.names():
                tell(f"{folder}: the figure {name!r} is not known, so it was not drawn. Load its plugin with --plugin.")
                continue
            figure = FIGURES.get(name).of(table)
            for suffix in ("png", "pdf") if figure else ():
                path = folder / f"{name}{f'-{number}' if number > 1 else ''}.{suffix}"
                save_figure(figure, path)
                drawn.add(path)
    names = "|".join(map(re.escape, FIGURES.names()))
    for path in sorted(folder.iterdir()):
        if path not in drawn and re.fullmatch(rf"({names})(-\d+)?", path.stem) and is_ours(path):
            path.unlink(missing_ok=True)  # another process of the grid may draw, too
