"""Score against trainable parameters: one panel per task, one marker per row, LoRA-drop in colour.

Bars are standard deviations over seeds. The dashed line joins the rows that no other row beats with as few parameters
(Pareto). Full fine-tuning is a horizontal line: its parameters would leave no room for the others. Rows with equal
numbers of parameters are drawn side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from lora_drop.experiments.plots import (
    MARKERS,
    OWN,
    Figure,
    Point,
    grey,
    label_points,
    legend_below,
    task_panels,
)
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Row, Table
from lora_drop.pruning.picture import plain

STEP, LOGARITHMIC = 1.06, 5
"""Distance between rows of one size, as a factor, and the spread of sizes above which the axis is logarithmic."""
LABELLED = 8
"""Most points of a panel with their names beside them; more names would cover each other and go into a legend."""


def draw(table: Table, records: list[Record]) -> Drawing | None:
    """Draw the columns that have a score; return None if no adapter has parameters."""
    columns = [column for column in table.columns if any(column.key in row.cells for row in table.rows)]
    across = {record.row for record in records if record.method == "full"}
    sizes = _sizes([row for row in table.rows if row.name not in across]) or _sizes(table.rows)
    if not sizes:
        return None
    spread = max(sizes) / min(sizes)
    figure, axes = task_panels(len(columns), 3.4, "score", sharex=True)
    styles = _styles(table, {record.row for record in records if record.own})
    named: list[tuple[Any, list[Point]]] = []
    shown = {}
    for axis, column in zip(axes, columns, strict=True):
        cells = [(row, cell) for row in table.rows if (cell := row.cells.get(column.key)) and cell.parameters]
        alone = [cell.parameters or 0.0 for row, cell in cells if row.name not in across]
        places = _beside(alone, max(sizes), spread)
        points: list[Point] = []
        for row, cell in cells:
            title = plain(row.title)
            if row.name in across:
                _line_across(axis, title, cell.mean)
                continue
            place, style = places[len(points)], styles[row.name]
            shown[row.title] = axis.errorbar(place, cell.mean, yerr=cell.deviation, label=title, **style)
            points.append((place, cell.mean, title, OWN if style["color"] == OWN else "black"))
        named.append((axis, points))
        _pareto(axis, [(cell.parameters or 0.0, cell.mean) for row, cell in cells if row.name not in across])
        _scale(axis, spread)
        axis.set_title(plain(column.title) + ("" if column.learnt else " (nothing was learnt)"), fontsize=10)
        axis.set_xlabel("trainable parameters")
    titles = [row.title for row in table.rows if row.title in shown]  # one may be missing in a panel: it was not run
    if max(len(points) for _, points in named) <= LABELLED:
        label_points(named)
    else:
        legend_below(figure, {title: shown[title] for title in titles})
    return figure


def _sizes(rows: Sequence[Row]) -> list[float]:
    return [cell.parameters for row in rows for cell in row.cells.values() if cell.parameters]


def _styles(table: Table, ours: set[str]) -> dict[str, dict[str, Any]]:
    """Return the style of each row; rows of one colour have different markers."""
    measured = [row.name for row in table.rows if row.cells]
    alike = {own: [name for name in measured if (name in ours) is own] for own in (True, False)}
    return {
        row.name: {
            "fmt": MARKERS[alike[row.name in ours].index(row.name) % len(MARKERS)],
            "color": OWN if row.name in ours else grey(number, len(table.rows)),
            **{"markeredgecolor": "black", "markersize": 7, "capsize": 3},
        }
        for number, row in enumerate(table.rows)
        if row.cells
    }


def _beside(sizes: Sequence[float], largest: float, spread: float) -> list[float]:
    """Return the x positions of rows of these sizes; rows of one size are side by side."""
    found = []
    for number, size in enumerate(sizes):
        steps = sizes[:number].count(size) - (sizes.count(size) - 1) / 2
        found.append(size * STEP**steps if spread > LOGARITHMIC else size + (STEP - 1) / 3 * largest * steps)
    return found


def _line_across(axis: Any, title: str, score: float) -> None:
    axis.axhline(score, color="0.4", linewidth=1, linestyle=":")
    axis.text(1, score, title, transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=7.5)


def _pareto(axis: Any, points: Sequence[tuple[float, float]]) -> None:
    """Join by steps the rows (parameters, score) that no other row beats with as few parameters."""
    best: list[tuple[float, float]] = []
    for size, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((size, score))
    if len(best) > 1:
        across, up = zip(*best, strict=True)
        axis.step(across, up, where="post", color="0.6", linewidth=0.9, linestyle="--", zorder=0)


def _scale(axis: Any, spread: float) -> None:
    """Make the x axis logarithmic if the largest number is many times the smallest."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    if spread > LOGARITHMIC:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if spread > 100 else (1.0, 3.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


FIGURE = Figure("tradeoff", reads=lambda record: record.metrics, draw=draw)
