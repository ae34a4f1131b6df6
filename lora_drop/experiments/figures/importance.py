"""Importance per layer, averaged over seeds: one column of panels per task, one row of panels per projection.

With a single task on which each row has its own warm-up, there is one column per row instead.
"""

from __future__ import annotations

from itertools import combinations

from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.agreement import mean_importances, projections_of, scored_by_row, warm_ups_by_task
from lora_drop.experiments.plots import DARK, Figure, layer_axis, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw each warm-up once: rows that only select differently share it."""
    shown, projections = warm_ups_by_task(table), projections_of(table.records)
    by_row = len(shown) == 1 and not any(one.scores == other.scores for one, other in combinations(records, 2))
    if by_row:
        shown = {f"{records[0].task_title}, {title}": mine for title, mine in scored_by_row(table).items()}
    figure, axes = panels(len(projections), len(shown), width=2.9, height=2.3, sharey="row")
    for across, (title, mine) in enumerate(shown.items()):
        for down, projection in enumerate(projections):
            values = mean_importances(mine, projection)
            axes[down][across].bar(range(len(values)), values, color=DARK)
            layer_axis(axes[down][across], len(values))
        of = f"\n{_row_of(table, mine)}" if not by_row and _differ(records, mine) else ""
        seeds = f"n = {len(mine)} seed{'s' * (len(mine) > 1)}"
        axes[0][across].set_title(f"{plain(title)} ({seeds}){of}", fontsize=10)
    for row, projection in zip(axes, projections, strict=True):
        row[0].set_ylabel(f"{projection} importance")
    return figure


def _differ(records: list[Record], drawn: list[Record]) -> bool:
    """Return True if another row of the task has its own warm-up, which is not drawn."""
    known = {(record.task, record.seed): record.scores for record in drawn}
    return any(record.scores != known.get((record.task, record.seed), record.scores) for record in records)


def _row_of(table: Table, drawn: list[Record]) -> str:
    names = {record.row for record in drawn}
    return plain("; ".join(row.title for row in table.rows if row.name in names))


FIGURE = Figure("importance", reads=lambda record: record.scores, draw=draw)
