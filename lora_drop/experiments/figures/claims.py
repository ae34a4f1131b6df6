"""Paired differences of an experiment's claims, with their intervals: a forest plot."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.claims import judge
from lora_drop.experiments.plots import DARK, LIGHT, Figure, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw a line for each claim, the first on top; dots are pairs of task and seed."""
    verdicts = judge(table)
    figure, axes = panels(1, 1, width=7.5, height=1.2 + 0.45 * len(verdicts))
    axis = axes[0][0]
    axis.axvline(0, color="0.6", linewidth=0.8)
    for height, found in enumerate(reversed(verdicts)):
        pairs = [difference for task in found.mean.tasks for difference in found.differences[task]]
        axis.plot(pairs, [height - 0.18] * len(pairs), "|", color=LIGHT, markersize=7)
        if found.margin is not None:
            axis.plot([-found.margin] * 2, [height - 0.3, height + 0.3], color="0.3", linestyle=":")
        for interval, width in ((found.mean.elsewhere, 0.8), (found.mean.here, 2.5)):
            if interval is not None:
                axis.plot(interval, [height] * 2, color=DARK, linewidth=width)
        axis.plot(found.mean.value, height, "o", color=DARK, markersize=6)
    names = [f"{plain(found.row)}\nagainst {plain(found.against)}" for found in reversed(verdicts)]
    axis.set_yticks(range(len(verdicts)), names, fontsize=8)
    axis.set_ylim(-0.6, len(verdicts) - 0.4)
    axis.set_xlabel(
        "difference in points (thick: 95 % interval on these tasks; thin: on others;\n"
        "strokes: pairs; dotted: the margin of the claim)",
        fontsize=9,
    )
    return figure


FIGURE = Figure("claims", reads=lambda record: record.metrics and record.layout.get("claims"), draw=draw)
