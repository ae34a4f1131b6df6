"""Tables as CSV."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence

from lora_drop.experiments.lines import averaged, text_of
from lora_drop.experiments.table import Cell, Row, Table
from lora_drop.files import csv_cell, write_csv_row

CSV_COLUMNS = (
    *("experiment", "backbone", "overrides", "row", "title", "retained", "task", "metric", "n_seeds", "seeds"),
    *("mean", "standard_deviation", "best_epoch_mean", "held_out_epoch_mean", "last_epoch_mean"),
    *("parameters", "head_parameters", "published", "difference", "flags"),
)


def to_csv(tables: Sequence[Table]) -> str:
    """Return one line per cell and average, unrounded; and one for a row without scores, which may retain layers."""
    stream = io.StringIO()
    write_csv_row(stream, CSV_COLUMNS)
    for line in (line for table in tables for row in table.rows for line in _csv_lines(table, row)):
        write_csv_row(stream, line)
    return stream.getvalue()


def _csv_lines(table: Table, row: Row) -> Iterator[list[object]]:
    asked = json.dumps(table.overrides, sort_keys=True) if table.overrides else ""
    retained = " ".join(f"{name}:{mean:g}" for name, mean in row.retained.items())
    cells = [(each.task, each.metric, row.cells[each.key]) for each in table.columns if each.key in row.cells]
    if averaged(table) and row.average is not None:
        sizes, theirs = (row.parameters, row.head), row.published.get("average")
        average = Cell(row.average, None, (), row.average_flags, *sizes, None, None, None, theirs, row.difference)
        cells.append(("average", "", average))
    if not cells and row.retained:  # its runs end with the selection
        yield [*map(csv_cell, (table.experiment, table.backbone, asked, row.name, row.title, retained)), *[""] * 14]
    for task, metric, cell in cells:
        head = [table.experiment, table.backbone, asked, row.name, row.title, retained, task, metric]
        seeds = [len(cell.seeds) or "", " ".join(map(str, cell.seeds))]
        epochs = (cell.mean, cell.deviation, cell.best, cell.held_out, cell.last)
        numbers = (*epochs, cell.parameters, cell.head, cell.published, cell.difference)
        yield [*map(csv_cell, head), *seeds, *(text_of(number, ".10g") for number in numbers), cell.flags]
