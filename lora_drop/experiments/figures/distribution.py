"""Distribution per layer of ‖ΔW x‖² (or another criterion's value) over the examples of the sample, for one run."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from lora_drop.config.identity import criterion_of
from lora_drop.experiments.plots import DARK, LIGHT, Figure, layer_axis, projection_panels
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.pruning.picture import plain


def draw(table: Table, records: list[Record]) -> Drawing:
    """Draw the first run: boxes cover the middle half of the examples, whiskers 5 to 95 %."""
    record = records[0]
    projections = list(dict.fromkeys(row["projection"] for row in record.norms))
    criterion = criterion_of(record.config)
    what = "‖ΔWx‖²" if criterion == PAPER else criterion
    figure, axes = projection_panels(projections, f"{what} of an example")
    for axis, projection in zip(axes, projections, strict=True):
        rows = sorted((row for row in record.norms if row["projection"] == projection), key=lambda row: row["layer"])
        axis.boxplot(
            [row["norms"] for row in rows],
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
    what, examples = plain(f"{record.task_title}, {record.backbone}"), len(record.norms[0]["norms"])
    figure.suptitle(f"{what}, {examples:,} examples, seed {record.seed}", fontsize=10)
    return figure


FIGURE = Figure("distribution", reads=lambda record: record.norms, draw=draw)
