"""Learning curves: the mean score over seeds on the evaluation split after each epoch.

There is one panel per task, and LoRA-drop is in colour.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from lora_drop.experiments.plots import MARKERS, OWN, Figure, grey, legend_below, task_panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain

MOST = 12
"""Most lines that can be told apart; of more rows, only those that the experiment's claims compare are drawn."""


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw the tasks that have runs of several epochs, each with the rows that were run on it."""
    tasks = list(dict.fromkeys(record.task_title for record in records))
    figure, axes = task_panels(len(tasks), 3.2, "score")
    compared = {claim[side] for claim in table.claims.values() for side in ("row", "against")}
    rows = [row for row in table.rows if row.name in compared or len(table.rows) <= MOST]
    lines = {}
    for axis, title in zip(axes, tasks, strict=True):
        for number, row in enumerate(rows):
            mine = [record for record in records if record.task_title == title and record.row == row.name]
            if not mine:
                continue
            style = {
                "color": OWN if mine[0].own else grey(number, len(rows)),
                "marker": MARKERS[number % len(MARKERS)],
            }
            epochs, means = _curve(mine)
            (lines[row.title],) = axis.plot(epochs, means, markersize=5, linewidth=1.2, alpha=0.85, **style)
        axis.set_title(plain(title), fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, lines)
    return figure


def _curve(records: list[Record]) -> tuple[list[float], np.ndarray]:
    """Return the epochs that all of these runs have, and the mean score after each."""
    scored = [
        {entry["epoch"]: entry[record.primary] for entry in record.epochs if record.primary in entry}
        for record in records
    ]
    shared = sorted(set.intersection(*map(set, scored)))
    return shared, records[0].unit * np.mean([[curve[epoch] for epoch in shared] for curve in scored], axis=0)


FIGURE = Figure("curves", reads=lambda record: len(record.epochs) > 1 and record.best, draw=draw)
