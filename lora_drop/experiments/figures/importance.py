"""Importance per layer: a column of panels per task, a row per projection; mean over seeds."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.agreement import mean_importances, projections_of, warm_ups_by_task
from lora_drop.experiments.plots import DARK, Figure, layer_axis, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw each warm-up once: rows that only select differently share it."""
    by_task, projections = warm_ups_by_task(table), projections_of(table)
    figure, axes = panels(len(projections), len(by_task), width=2.9, height=2.3, sharey="row")
    for across, (title, mine) in enumerate(by_task.items()):
        for down, projection in enumerate(projections):
            values = mean_importances(mine, projection)
            axes[down][across].bar(range(len(values)), values, color=DARK)
            layer_axis(axes[down][across], len(values))
        axes[0][across].set_title(f"{plain(title)} (n = {len(mine)} seed{'s' * (len(mine) > 1)})", fontsize=10)
    for row, projection in zip(axes, projections, strict=True):
        row[0].set_ylabel(f"{projection} importance")
    return figure


FIGURE = Figure("importance", reads=lambda record: record.scores, draw=draw)
