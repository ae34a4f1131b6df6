"""Score against trainable parameters: a panel per task, a marker per row; bars are standard deviations over seeds."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from lora_drop.experiments.plots import MARKERS, Figure, grey, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw the columns in which there is a score."""
    columns = [column for column in table.columns if any(column.key in row.cells for row in table.rows)]
    sizes = [row.parameters for row in table.rows if row.parameters]
    ticks = (1.0,) if max(sizes) > 100 * min(sizes) else (1.0, 3.0)
    figure, axes = panels(1, len(columns), width=3.2, height=3.4, sharex=True)
    shown = {}
    for axis, column in zip(axes[0], columns, strict=True):
        for number, row in enumerate(table.rows):
            cell = row.cells.get(column.key)
            if cell is None or row.parameters is None:
                continue
            style: dict[str, Any] = {"fmt": MARKERS[number % len(MARKERS)], "color": grey(number, len(table.rows))}
            style |= {"markeredgecolor": "black", "markersize": 7, "capsize": 3, "label": plain(row.title)}
            shown[row.title] = axis.errorbar(row.parameters, cell.mean, yerr=cell.deviation, **style)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=ticks))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(plain(column.title), fontsize=10)
        axis.set_xlabel("trainable parameters")
    axes[0][0].set_ylabel("score")
    titles = [row.title for row in table.rows if row.title in shown]  # one may be missing in a panel: it was not run
    figure.legend(
        [shown[title] for title in titles],
        list(map(plain, titles)),
        loc="outside lower center",
        ncols=int(figure.get_figwidth() / 1.5),
        frameon=False,
        fontsize=8,
    )
    return figure


FIGURE = Figure("tradeoff", reads=lambda record: record.metrics, draw=draw)
