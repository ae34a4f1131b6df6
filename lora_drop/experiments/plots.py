"""What figures of an experiment have in common. Readable in grey: what differs, differs in lightness or marker, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table

DARK, MIDDLE, LIGHT = "#1f4e79", "#6b8fb3", "#d9b38c"
OWN = "#d95f02"
"""LoRA-drop among other methods."""
MARKERS = "osD^vP*Xd<>p"


@dataclass(frozen=True)
class Figure:
    """A figure of an experiment, which names it in `figures`: one file, drawn again from the records at each report."""

    name: str
    """Its name, and that of its files."""
    reads: Callable[[Record], Any]
    """True for a record that it is drawn from; where there is none, there is no figure."""
    draw: Callable[[Table, list[Record]], Drawing]
    """Draws it, from the table of an experiment and those of its records."""

    def of(self, table: Table) -> Drawing | None:
        """Draw the figure of a table, or return None if it has no record to draw it from."""
        records = [record for record in table.records if self.reads(record)]
        return self.draw(table, records) if records else None


def shade(number: int, total: int) -> Any:
    """Return a colour of a sequential map, from light to dark, in which lightness alone tells the order, too."""
    return colormaps["viridis_r"](0.15 + 0.85 * number / max(total - 1, 1))


def grey(number: int, total: int) -> str:
    """Return a shade from nearly black to light grey."""
    return str(round(0.05 + 0.8 * number / max(total - 1, 1), 3))


def panels(down: int, across: int, width: float, height: float, **options: Any) -> tuple[Drawing, Any]:
    """Return a figure and its axes (`down across`), each of `width` × `height` inches."""
    figure = Drawing(figsize=(max(width * across, 4.5), height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def layer_axis(axis: Any, layers: int) -> None:
    """Let a panel's x axis be that of the layers."""
    axis.set_xlabel("layer")
    axis.set_xlim(-0.7, layers - 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def projection_panels(projections: list[str], what: str) -> tuple[Drawing, Any]:
    """Return a figure with a panel for each projection beside each other, and its axes; `what` is on the y axis."""
    figure, axes = panels(1, len(projections), width=4.4, height=3.2, sharey=True)
    for axis, projection in zip(axes[0], projections, strict=True):
        axis.set_title(projection, fontsize=10)
    axes[0][0].set_ylabel(what)
    return figure, axes[0]
