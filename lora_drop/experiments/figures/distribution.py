"""Distribution per layer of ‖ΔW x‖² (or another criterion's value) over the examples of a sample: one run per task."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Drawing

from lora_drop.config.identity import criterion_of
from lora_drop.experiments.plots import DARK, LIGHT, Figure, layer_axis, panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw the first run of each task: boxes cover the middle half of the examples, whiskers 5 to 95 %."""
    runs = list({record.task: record for record in reversed(records)}.values())[::-1]
    projections = list(dict.fromkeys(row["projection"] for record in runs for row in record.norms))
    figure, axes = panels(len(runs), len(projections), width=4.4, height=3.2, sharey="row")
    for run, across in zip(runs, axes, strict=True):
        criterion, examples = criterion_of(run.config), len(run.norms[0]["norms"])
        across[0].set_ylabel(f"{'‖ΔWx‖²' if criterion == PAPER else criterion} of an example")
        for axis, projection in zip(across, projections, strict=True):
            _boxes(axis, [row for row in run.norms if row["projection"] == projection])
            told = f"{run.task_title}, {projection}" if len(runs) > 1 else projection
            axis.set_title(f"{plain(told)} ({examples:,} examples, seed {run.seed})", fontsize=10)
    figure.suptitle(plain(table.backbone), fontsize=10)
    return figure


def _boxes(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Draw a box for each layer's `norms`."""
    axis.boxplot(
        [row["norms"] for row in sorted(rows, key=lambda row: row["layer"])],
        positions=range(len(rows)),
        whis=(5, 95),
        widths=0.6,
        patch_artist=True,
        showfliers=False,
        boxprops={"facecolor": LIGHT, "edgecolor": DARK},
        medianprops={"color": "black", "linewidth": 1.5},
        manage_ticks=False,
    )
    axis.set_yscale("log")
    layer_axis(axis, len(rows))


FIGURE = Figure("distribution", reads=lambda record: record.norms, draw=draw)
