"""Score against trainable parameters by criterion: one panel per task, one line per criterion through its budgets."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter

from lora_drop.config.identity import criterion_of
from lora_drop.experiments.plots import DARK, MARKERS, Figure, grey, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.pruning.picture import plain

Points = dict[str, list[tuple[float, float, float]]]


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw means over seeds, with standard deviations as bars; plain LoRA is a horizontal line."""
    order = {row.name: number for number, row in enumerate(table.rows)}
    records = sorted(records, key=lambda record: order[record.row])
    tasks = list(dict.fromkeys(record.task_title for record in records))
    figure, axes = panels(1, len(tasks), width=4.2, height=3.4)
    shown: dict[str, Any] = {}
    names = list(dict.fromkeys(criterion_of(record.config) for record in records))
    for axis, task in zip(axes[0], tasks, strict=True):
        mine = [record for record in records if record.task_title == task]
        for name, points in points_of(mine).items():
            number = names.index(name)
            style: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5, "capsize": 3}
            style |= {"color": DARK, "linewidth": 2} if name == PAPER else {"color": grey(number, len(names) + 2)}
            sizes, means, deviations = zip(*points, strict=True)
            shown[name] = axis.errorbar(sizes, means, yerr=deviations, label=name, **style)
        plain_lora = [_score(record) for record in mine if record.method == "lora"]
        if plain_lora:
            shown["LoRA"] = axis.axhline(np.mean(plain_lora), color="black", linestyle=":", linewidth=1)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_title(plain(task), fontsize=10)
        axis.set_xlabel("trainable parameters")
    axes[0][0].set_ylabel("score")
    figure.legend(shown.values(), shown, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def points_of(records: list[Record]) -> Points:
    """Return, by criterion, a point (parameters, score, deviation of the score) for each row, averaged over seeds.

    Rows that are no LoRA-drop as in the paper (other methods, ablations) have none.
    """
    rows: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.own:
            rows[criterion_of(record.config), record.row].append(record)
    points: Points = defaultdict(list)
    for (name, _), mine in rows.items():
        scores = [_score(record) for record in mine]
        deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        points[name].append(
            (float(np.mean([record.parameters["adapter"] for record in mine])), float(np.mean(scores)), deviation)
        )
    return {name: sorted(found) for name, found in points.items()}


def _score(record: Record) -> float:
    return record.metrics[record.primary] * record.unit


FIGURE = Figure("criteria", reads=lambda record: record.metrics and record.parameters, draw=draw)
