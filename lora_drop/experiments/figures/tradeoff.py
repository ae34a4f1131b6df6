"""Score against trainable parameters: a panel per task, a marker per row, LoRA-drop in colour; bars are standard
deviations over seeds. The dashed line joins what no other row beats with as few parameters (Pareto).
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from lora_drop.experiments.plots import (
    MARKERS,
    OWN,
    Figure,
    Point,
    grey,
    is_own,
    label_points,
    legend_below,
    task_panels,
)
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain

LABELLED = 8
"""Up to so many points of a panel have their names beside them; more would cover each other, and are in a legend."""


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw the columns in which there is a score."""
    columns = [column for column in table.columns if any(column.key in row.cells for row in table.rows)]
    sizes = [cell.parameters for row in table.rows for cell in row.cells.values() if cell.parameters]
    spread = max(sizes) / min(sizes)
    figure, axes = task_panels(len(columns), 3.4, "score", sharex=True)
    ours = {record.row for record in records if is_own(record)}
    measured = [row.name for row in table.rows if row.cells]
    # rows of one colour are told apart by their markers
    alike = {own: [name for name in measured if (name in ours) is own] for own in (True, False)}
    named: list[tuple[Any, list[Point]]] = []
    shown = {}
    for axis, column in zip(axes, columns, strict=True):
        points: list[Point] = []
        for number, row in enumerate(table.rows):
            cell = row.cells.get(column.key)
            if cell is None or cell.parameters is None:
                continue
            colour = OWN if row.name in ours else grey(number, len(table.rows))
            place = alike[row.name in ours].index(row.name)
            style: dict[str, Any] = {"fmt": MARKERS[place % len(MARKERS)], "color": colour}
            style |= {"markeredgecolor": "black", "markersize": 7, "capsize": 3, "label": plain(row.title)}
            shown[row.title] = axis.errorbar(cell.parameters, cell.mean, yerr=cell.deviation, **style)
            points.append((cell.parameters, cell.mean, plain(row.title), OWN if row.name in ours else "black"))
        named.append((axis, points))
        _pareto(axis, points)
        _scale(axis, spread)
        axis.set_title(plain(column.title), fontsize=10)
        axis.set_xlabel("trainable parameters")
    titles = [row.title for row in table.rows if row.title in shown]  # one may be missing in a panel: it was not run
    if max(len(points) for _, points in named) <= LABELLED:
        label_points(named)
    else:
        legend_below(figure, {title: shown[title] for title in titles})
    return figure


def _pareto(axis: Any, points: list[Point]) -> None:
    """Join the rows that no other beats with as few parameters, by steps."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    if len(best) > 1:
        across, up = [point[0] for point in best], [point[1] for point in best]
        axis.step(across, up, where="post", color="0.6", linewidth=0.9, linestyle="--", zorder=0)


def _scale(axis: Any, spread: float) -> None:
    """Let the x axis be logarithmic where the largest number is many times the smallest."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    if spread > 5:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if spread > 100 else (1.0, 3.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


FIGURE = Figure("tradeoff", reads=lambda record: record.metrics, draw=draw)
