"""Figures that are readable in grey: retained layers are dark or framed, shared layers are light (and hatched bars)."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from lora_drop.pruning.scores import Scored
from lora_drop.pruning.selection import Selection, select

RETAINED: dict[str, Any] = {"color": "#1f4e79"}
SHARED: dict[str, Any] = {"color": "#d9b38c", "hatch": "///", "edgecolor": "white"}
FRAME = "#b35900"
BARS_PROJECTIONS, BARS_LAYERS = 2, 16
"""Most projections and layers that are drawn as bars; more are drawn as a heat strip."""
Doubts = Mapping[tuple[str, int], Mapping[str, Any]]
"""Rows of a bootstrap (`low`, `high`, `retained`) by projection and layer."""

_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": "lora-drop"},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": "lora-drop"},
}
"""No dates, so that the same figure gives the same bytes; and a mark by which `is_ours` recognises the file."""
_MARKS = {".png": b"Software\0lora-drop", ".pdf": b"/Creator (lora-drop)"}


class Picture(Figure):
    """A figure that a notebook displays without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        FigureCanvasAgg(self).print_png(content)
        return content.getvalue()


def importance_figure(
    scored: Sequence[Scored], selection: Selection | None, title: str, stability: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Draw the importance of each layer and mark the retained ones, as bars or, if these are too many, as a heat strip.

    Args:
        scored: every LoRA, in model order.
        selection: the selection from them; None draws all layers the same.
        title: first line above the figure; T and the saved parameters of a selection follow.
        stability: rows of `stability.bootstrap`, which add 95 % intervals and marks for borderline layers.
    """
    doubts: Doubts = {(row["projection"], row["layer"]): row for row in stability}
    layers = 1 + max(row.layer for row in scored)
    shown = selection or select(scored, threshold=1.0)
    bars = len(shown.projections) <= BARS_PROJECTIONS and layers <= BARS_LAYERS
    figure = (_bars if bars else _strip)(scored, shown, doubts)
    figure.suptitle(plain(f"{title}\n{_saved(scored, selection)}" if selection else title), fontsize=11)
    return figure


def _saved(scored: Sequence[Scored], selection: Selection) -> str:
    whole, left = sum(row.parameters for row in scored), selection.trainable_parameters
    rule = f"T = {selection.threshold:.3g}" + (f" ({selection.policy})" if selection.policy != "threshold" else "")
    return f"{rule}, {left:,} of {whole:,} parameters ({1 - left / whole:.0%} saved)"


def _bars(scored: Sequence[Scored], selection: Selection, doubts: Doubts) -> Figure:
    """Draw a panel of bars for each projection."""
    panels = list(dict.fromkeys(row.projection for row in scored))
    figure = Picture(figsize=(max(4.2 * len(panels), 6.0), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, projection in zip(axes, panels, strict=True):
        layers = selection.projections[projection]
        importances = {row.layer: row.importance for row in scored if row.projection == projection}
        axis.bar(layers.retained, [importances[layer] for layer in layers.retained], **RETAINED)
        axis.bar(layers.shared, [importances[layer] for layer in layers.shared], **SHARED)
        for layer, value in importances.items():
            if (projection, layer) in doubts:
                row = doubts[projection, layer]
                below, above = max(value - row["low"], 0), max(row["high"] - value, 0)
                axis.errorbar(layer, value, [[below], [above]], color="black", linewidth=1, capsize=2)
        axis.set_title(_counted(projection, selection), fontsize=10)
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("importance" + (", 95 % interval" if doubts else ""))
    rest = "shared" if selection.share else "without LoRA"
    patches = [
        Patch(**RETAINED, label="retained"),
        Patch(facecolor=SHARED["color"], hatch="///", edgecolor="white", label=rest),
    ]
    axes[-1].legend(handles=patches, frameon=False, fontsize=9)
    return figure


def _counted(projection: str, selection: Selection) -> str:
    layers = selection.projections[projection]
    return plain(f"{projection}: {len(layers.retained)} of {len(layers.all)} layers hold {layers.coverage:.0%}")


def _strip(scored: Sequence[Scored], selection: Selection, doubts: Doubts) -> Figure:
    """Draw a row of cells for each projection and a column for each layer; the darker, the more important."""
    rows = list(dict.fromkeys(row.projection for row in scored))
    columns, wide = 1 + max(row.layer for row in scored), max(row.importance for row in scored)
    roomy = columns <= BARS_LAYERS
    width, height = (0.62 if roomy else 0.3) * columns + 3.4, (0.55 if roomy else 0.4) * len(rows) + 1.9
    figure = Picture(figsize=(max(width, 7.5), height), layout="constrained")
    axis = figure.subplots()
    cells = [[float("nan")] * columns for _ in rows]
    for each in scored:
        cells[rows.index(each.projection)][each.layer] = each.importance
    image = axis.imshow(cells, cmap="Blues", vmin=0, vmax=wide, aspect="auto")
    for each in scored:
        kept = each.layer in selection.projections[each.projection].retained
        place = (each.layer, rows.index(each.projection))
        if kept:
            corner = (place[0] - 0.44, place[1] - 0.42)
            axis.add_patch(Rectangle(corner, 0.88, 0.84, fill=False, edgecolor=FRAME, linewidth=2))
        row = doubts.get((each.projection, each.layer))
        text = _text(each.importance, row, roomy)
        colour = "white" if each.importance > 0.55 * wide else "black"
        axis.text(*place, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_yticks(range(len(rows)), [_counted(name, selection) for name in rows], fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    rest = "the others share one" if selection.share else "the others have none"
    legend = f"framed: a LoRA of its own; {rest}" + ("" if not doubts else _explained(roomy))
    axis.set_xlabel(f"layer\n{legend}")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="importance", pad=0.01)
    return figure


def _text(importance: float, doubt: Mapping[str, Any] | None, roomy: bool) -> str:
    """Return the text of a cell: its importance and interval, or if cells are narrow, a mark for a borderline layer."""
    if not roomy:
        return "?" if doubt is not None and 0.05 < doubt["retained"] < 0.95 else ""
    interval = f"\n{100 * doubt['low']:.0f}–{100 * doubt['high']:.0f}" if doubt is not None else ""
    return f"{importance:.0%}{interval}"


def _explained(roomy: bool) -> str:
    return ", below: 95 % interval" if roomy else "; ?: retained in 5 to 95 % of resamples"


def plain(text: str) -> str:
    """Escape a text for matplotlib: the dollar signs of a path would start a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix. The same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a name that `files.sweep` knows
    try:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=_METADATA[path.suffix])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Return True if `save_figure` wrote this file."""
    return path.suffix in _MARKS and path.is_file() and _MARKS[path.suffix] in path.read_bytes()
