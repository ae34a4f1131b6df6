"""A forest plot of the paired differences of an experiment's claims, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure as Drawing

from lora_drop.experiments.claims import Verdict, judge
from lora_drop.experiments.means import Mean
from lora_drop.experiments.plots import DARK, LIGHT, Figure, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw a line for each claim, the first on top; strokes are pairs of task and seed.

    The same on the rows held out of training is drawn below the line, in grey.
    """
    verdicts = judge(table)
    figure, axes = panels(1, 1, width=7.5, height=1.4 + 0.55 * len(verdicts))
    axis = axes[0][0]
    axis.axvline(0, color="0.6", linewidth=0.8)
    for height, found in enumerate(reversed(verdicts)):
        if found.margin is not None:
            axis.plot([-found.margin] * 2, [height - 0.38, height + 0.3], color="0.3", linestyle=":")
        pairs = [difference for task in found.mean.tasks for difference in found.differences[task]]
        axis.plot(pairs, [height + 0.2] * len(pairs), "|", color=LIGHT, markersize=6)
        if found.mean.elsewhere is not None:  # marked ends show even where it is the narrower one
            axis.plot(found.mean.elsewhere, [height] * 2, color=DARK, linewidth=0.8, marker="|", markersize=9)
        _interval(axis, found.mean, height, "o", DARK)
        if found.held_out is not None:
            _interval(axis, found.held_out.mean, height - 0.24, "s", "0.55")
    names = [f"{plain(found.row)}\nagainst {plain(found.against)}" for found in reversed(verdicts)]
    axis.set_yticks(range(len(verdicts)), names, fontsize=8)
    axis.set_ylim(-0.6, len(verdicts) - 0.4)
    axis.set_xlabel(_key(verdicts), fontsize=9)
    return figure


def _key(verdicts: Sequence[Verdict]) -> str:
    """Return what the marks mean, for those that are drawn."""
    marks = {
        "thick: 95 % interval on these tasks": any(found.mean.here is not None for found in verdicts),
        "thin: on others": any(found.mean.elsewhere is not None for found in verdicts),
        "strokes: pairs": True,
        "grey: the same runs on the rows held out": any(found.held_out is not None for found in verdicts),
        "dotted: the margin of the claim": any(found.margin is not None for found in verdicts),
    }
    return fill(f"difference in points ({'; '.join(mark for mark, drawn in marks.items() if drawn)})", width=92)


def _interval(axis: Any, mean: Mean, height: float, marker: str, colour: str) -> None:
    """Draw a mean and its interval for other seeds."""
    if mean.here is not None:
        axis.plot(mean.here, [height] * 2, color=colour, linewidth=2.5, solid_capstyle="butt")
    axis.plot(mean.value, height, marker, color=colour, markersize=5)


FIGURE = Figure("claims", reads=lambda record: record.metrics and record.layout.get("claims"), draw=draw)
