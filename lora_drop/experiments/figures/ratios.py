"""Importance per layer, averaged over seeds: one line per sample ratio, darker for larger ratios."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.agreement import between_rows, mean_importances, projections_of, scored_by_row
from lora_drop.experiments.plots import MARKERS, Figure, layer_axis, projection_panels, shade
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw every row, and state how far the rows agree on the ranking of layers."""
    projections, rows, lines = projections_of(table.records), list(scored_by_row(table)), {}
    figure, axes = projection_panels(projections, "importance")
    for axis, projection in zip(axes, projections, strict=True):
        for title, mine in scored_by_row(table, projection).items():
            values, number = mean_importances(mine, projection), rows.index(title)
            colour, marker = shade(number, len(rows)), MARKERS[number % len(MARKERS)]
            (lines[title],) = axis.plot(values, marker=marker, color=colour, markersize=4, linewidth=1)
        taus = [tau for tau in between_rows(table, projection).values() if not np.isnan(tau)]
        agreement = f": Kendall τ {np.mean(taus):.2f} on average, at least {min(taus):.2f}" if taus else ""
        axis.set_title(f"{projection}{agreement}", fontsize=10)
        layer_axis(axis, len(values))
    shown = {plain(title): lines[title] for title in rows}
    figure.legend(shown.values(), shown, title="sample ratio", loc="outside right center", frameon=False, fontsize=8)
    return figure


FIGURE = Figure("ratios", reads=lambda record: record.scores, draw=draw)
