"""Scores over the importance retained, for runs of one task and seed that differ only in the policy; a panel per task."""

from __future__ import annotations

from statistics import fmean

import numpy as np
from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.claims import kept_score
from lora_drop.experiments.lines import signed
from lora_drop.experiments.plots import MARKERS, OWN, Figure, grey, legend_below, task_panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.retained import STEP, Choices, choices, importance, slopes
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain

NAMES = {
    "threshold": "most important layers",
    "inverse": "least important layers",
    "random": "random layers",
    "top": "last layers",
    "bottom": "first layers",
}
"""The policies in the words of the legend."""


def draw(table: Table, _: list[Record]) -> Drawing | None:
    """Draw each run as its distance from the mean of its task and seed, and the mean slope as a dashed line."""
    groups = choices(table)
    if not groups:
        return None
    tasks = list(dict.fromkeys(group[0].task_title for group in groups))
    policies = [name for name in NAMES if any(name == _policy(record) for group in groups for record in group)]
    figure, axes = task_panels(len(tasks), 3.0, "points from the seed's mean")
    shown = {}
    for axis, task in zip(axes, tasks, strict=True):
        mine = [group for group in groups if group[0].task_title == task]
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        for number, policy in enumerate(policies):
            points = [point for group in mine for point in _points(group, policy)]
            style = {
                "color": OWN if policy == "threshold" else grey(number, len(policies) + 1),
                "markeredgecolor": "black",
            }
            (shown[NAMES[policy]],) = axis.plot(*np.reshape(points, (-1, 2)).T, MARKERS[number], linestyle="", **style)
        found = slopes(mine)
        assert found is not None  # every group has scores
        slope = found.mean.value
        across = np.array([importance(record) for group in mine for record in group])
        ends = np.array([across.min(), across.max()])
        axis.plot(ends, (ends - across.mean()) * slope / STEP, color="0.4", linewidth=1, linestyle="--", zorder=0)
        axis.set_title(f"{plain(task)}: {signed(slope, 2)} per {STEP:g} %", fontsize=10)
        axis.set_xlabel("importance retained, %")
    legend_below(figure, {name: shown[name] for name in NAMES.values() if name in shown})
    return figure


def _policy(record: Record) -> str:
    return str(record.config.get("method", {}).get("policy"))


def _points(group: Choices, policy: str) -> list[tuple[float, float]]:
    """Return importance and score of the runs with a policy, the score as the distance from the group's mean."""
    scores = {id(record): record.unit * score for record in group if (score := kept_score(record)) is not None}
    mean = fmean(scores.values())
    return [(importance(record), scores[id(record)] - mean) for record in group if _policy(record) == policy]


FIGURE = Figure("retained", reads=lambda record: record.metrics and record.selection, draw=draw)
