"""Importance of the layers on every task, averaged over seeds: one row of cells per task, one block per projection.

Blocks stand side by side, those of a deep model one below the other.

The number in a cell counts the seeds in which LoRA-drop retains the layer. It is taken from the experiment's LoRA-drop
row with the most runs. The colours show the warm-ups of that row where it has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from lora_drop.experiments.agreement import mean_importances, projections_of, row_of_choices, warm_ups_by_task
from lora_drop.experiments.plots import Figure, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain

SIDE_BY_SIDE = 16
"""Most layers of which blocks stand side by side."""


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw each warm-up once: rows that only select differently share it."""
    by_task = warm_ups_by_task(table)
    projections = projections_of(record for mine in by_task.values() for record in mine)
    cells = {name: _means(list(by_task.values()), name) for name in projections}
    layers = max(block.shape[1] for block in cells.values())
    width, height = 0.42 * layers + 1.6, max(0.42 * len(by_task) + 0.9, 1.6)
    shape = (1, len(projections)) if layers <= SIDE_BY_SIDE else (len(projections), 1)
    figure, grid = panels(*shape, width=width, height=height, sharey=True)
    axes = grid.flatten()
    row = row_of_choices(table)
    chosen = [record for record in records if row and record.row == row.name]
    darkest = max(np.nanmax(block) for block in cells.values())
    for axis, name in zip(axes, projections, strict=True):
        image = axis.imshow(cells[name], cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
        for down, (title, values) in enumerate(zip(by_task, cells[name], strict=True)):
            _count(axis, down, [record for record in chosen if record.task_title == title], name, values / darkest)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    names = [f"{plain(title)} ({len(mine)})" for title, mine in by_task.items()]
    for axis in grid[:, 0]:
        axis.set_yticks(range(len(names)), names, fontsize=9)
    if row:
        figure.supxlabel(f"numbers: seeds in which {plain(row.title)} retains the layer", fontsize=8)
    figure.colorbar(image, ax=list(axes), label="importance", pad=0.01)
    return figure


def _means(groups: Sequence[Sequence[Record]], projection: str) -> np.ndarray:
    """Return the importances of one projection, `groups layers`, averaged over the records of each group that have it.

    A group without it has NaN, shown as empty cells: rows and tasks may target other projections.
    """
    means = [mean_importances(group, projection) for group in groups]
    layers = max(map(len, means))
    return np.array([values if len(values) else np.full(layers, np.nan) for values in means])


def _count(axis: Any, down: int, records: list[Record], projection: str, shades: Any) -> None:
    """Write into the cells of a task the number of its seeds that retain the layer; nothing for 0."""
    parts = [record.selection["projections"].get(projection, {}) for record in records if record.selection]
    chosen = [part.get("retained", ()) for part in parts]
    for layer, shade in enumerate(shades):
        count = sum(layer in retained for retained in chosen)
        if count:
            colour = "white" if shade > 0.55 else "black"
            axis.text(layer, down, str(count), ha="center", va="center", fontsize=7, color=colour)


FIGURE = Figure("layers", reads=lambda record: record.scores, draw=draw)
