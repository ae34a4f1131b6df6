"""Common parts of an experiment's figures, which are readable in grey: colours also differ in lightness or marker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.picture import plain

DARK, LIGHT = "#1f4e79", "#d9b38c"
OWN = "#d95f02"
"""Colour of LoRA-drop among other methods."""
MARKERS = "osD^vP*Xd<>p"
Point = tuple[float, float, str, str]
"""x, y, name and the name's colour."""
ACROSS = 4
"""Most panels side by side that can still be read on a page."""
COLUMN = 2.2
"""Width, in inches, of a legend column that has room for the longest titles."""
_SHIFTS = [(dx, dy) for far in (0, 12, 24, 36, 48) for dy in (far, -far) for dx in (8, -8, 24 + far, -24 - far)]
"""Offsets of a name from its point, in points of 1/72 inch, the nearest first."""


@dataclass(frozen=True)
class Figure:
    """A figure that an experiment names in `figures`, drawn again from the records at each report."""

    name: str
    """Its name, also that of its files."""
    reads: Callable[[Record], Any]
    """True for a record that it is drawn from; without such a record there is no figure."""
    draw: Callable[[Table, list[Record]], Drawing | None]
    """Draws it from the table of an experiment and those records of the table that it reads; None if they show nothing."""

    def of(self, table: Table) -> Drawing | None:
        """Draw the figure of a table; return None if the table has no record to draw it from."""
        records = [record for record in table.records if self.reads(record)]
        return self.draw(table, records) if records else None


def shade(number: int, total: int) -> Any:
    """Return a colour of a sequential map, from light to dark; lightness alone shows the order, too."""
    return colormaps["viridis_r"](0.15 + 0.85 * number / max(total - 1, 1))


def grey(number: int, total: int) -> str:
    """Return a shade of grey, from nearly black to light."""
    return str(round(0.05 + 0.8 * number / max(total - 1, 1), 3))


def label_points(named: Sequence[tuple[Any, Sequence[Point]]]) -> None:
    """Write names beside the points of each panel so that they cover neither each other nor a point.

    A thin line joins a name to its point if they are far apart.

    Args:
        named: panels of one figure and their points.
    """
    for axis, _ in named:
        axis.margins(x=0.2, y=0.2)
    figure = named[0][0].figure
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # positions are known only once every panel has its margins
    for axis, points in named:
        _label(axis, points)


def _label(axis: Any, points: Sequence[Point]) -> None:
    scale, inside = axis.figure.dpi / 72, axis.get_window_extent()
    places = axis.transData.transform([point[:2] for point in points])
    taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in places]
    for (x, y, text, colour), place in zip(points, places, strict=True):
        size = 4.4 * len(text) * scale, 9 * scale
        boxes = {shift: _box(place, shift, size, scale) for shift in _SHIFTS}
        within = [each for each, box in boxes.items() if inside.x0 <= box.x0 and box.x1 <= inside.x1]
        free = [each for each in within if not any(boxes[each].overlaps(other) for other in taken)]
        shift = next(iter(free or within or _SHIFTS))
        taken.append(boxes[shift])
        style: dict[str, Any] = {"fontsize": 7.5, "color": colour, "ha": "left" if shift[0] > 0 else "right"}
        # keeps a name readable on top of a line
        style["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
        if max(map(abs, shift)) > 8:
            style["arrowprops"] = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4}
        name = axis.annotate(text, (x, y), xytext=shift, textcoords="offset points", va="center", **style)
        name.set_in_layout(False)  # else the panels would move to make room for the names


def _box(place: Any, shift: tuple[int, int], size: tuple[float, float], scale: float) -> Bbox:
    """Return the box that a name covers at a shift from its point."""
    (x, y), (width, height) = place, size
    left = x + shift[0] * scale - (width if shift[0] < 0 else 0)
    return Bbox.from_bounds(left, y + shift[1] * scale - height / 2, width, height)


def legend_below(figure: Drawing, shown: Mapping[str, Any]) -> None:
    """Add a legend of titles below the panels, in as many columns as have room."""
    columns = max(2, int(figure.get_figwidth() / COLUMN))
    titles = list(map(plain, shown))
    figure.legend(list(shown.values()), titles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def panels(down: int, across: int, width: float, height: float, **options: Any) -> tuple[Drawing, Any]:
    """Return a figure and its axes (`down across`), each of `width` × `height` inches."""
    figure = Drawing(figsize=(max(width * across, 4.5), height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def task_panels(count: int, height: float, what: str, **options: Any) -> tuple[Drawing, list[Any]]:
    """Return a figure with `count` panels, at most four side by side, and their axes; `what` labels the y axes."""
    down = math.ceil(count / ACROSS)
    across = math.ceil(count / down)
    figure, axes = panels(down, across, width=3.6, height=height, **options)
    for axis in axes[:, 0]:
        axis.set_ylabel(what)
    for number, axis in enumerate(axes.flat):
        if number + across >= count:  # the lowest panel of its column, even if axes are shared
            axis.tick_params(labelbottom=True)
        if number >= count:
            axis.set_axis_off()
    return figure, list(axes.flat[:count])


def layer_axis(axis: Any, layers: int) -> None:
    """Make a panel's x axis an axis of layers."""
    axis.set_xlabel("layer")
    axis.set_xlim(-0.7, layers - 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def projection_panels(projections: list[str], what: str) -> tuple[Drawing, Any]:
    """Return a figure with one panel per projection, side by side, and its axes; `what` labels the y axis."""
    figure, axes = panels(1, len(projections), width=4.4, height=3.2, sharey=True)
    for axis, projection in zip(axes[0], projections, strict=True):
        axis.set_title(projection, fontsize=10)
    axes[0][0].set_ylabel(what)
    return figure, axes[0]
