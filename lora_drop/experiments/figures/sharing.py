"""Importance per layer of one run, before sharing (the warmed-up LoRA) and after (the trained LoRA-drop)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.agreement import projections_of
from lora_drop.experiments.plots import DARK, LIGHT, Figure, layer_axis, projection_panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.agreement import by_layer
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw the first run; layers that share a LoRA are hatched, and layers left without one have no second bar."""
    record = records[0]
    projections = projections_of([record])
    figure, axes = projection_panels(projections, "importance")
    after_style = {"color": LIGHT, "edgecolor": "black", "linewidth": 0.4}
    for axis, projection in zip(axes, projections, strict=True):
        before, after = (by_layer(rows, projection) for rows in (record.scores, record.trained_scores))
        shared = set(record.selection["projections"][projection]["shared"])
        axis.bar(np.array(list(before)) - 0.2, before.values(), 0.4, color=DARK, label="before sharing")
        for layer, value in after.items():
            axis.bar(layer + 0.2, value, 0.4, hatch="////" if layer in shared else "", **after_style)
        axis.bar(0, 0, label="after, own LoRA", **after_style)
        axis.bar(0, 0, label="after, shared LoRA", hatch="////", **after_style)
        layer_axis(axis, max(before) + 1)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(plain(f"{record.task_title}, {record.backbone}, seed {record.seed}"), fontsize=10)
    return figure


FIGURE = Figure("sharing", reads=lambda record: record.trained_scores, draw=draw)
