"""Figures, readable in grey: what is retained is dark, what is shared is light and hatched."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lora_drop.pruning.agreement import by_layer
from lora_drop.pruning.selection import Layers, Scored, Selection

RETAINED: dict[str, Any] = {"color": "#1f4e79"}
SHARED: dict[str, Any] = {"color": "#d9b38c", "hatch": "///", "edgecolor": "white"}


_NO_DATES: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


class Picture(Figure):
    """A figure that a notebook shows as it is, without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        FigureCanvasAgg(self).print_png(content)
        return content.getvalue()


def importance_figure(scored: Sequence[Scored], selection: Selection | None, title: str) -> Figure:
    """Draw the importance of each layer, one panel per projection, retained and low-importance layers in two colours.

    Without a selection all layers have one colour.
    """
    panels = list(dict.fromkeys(row.projection for row in scored) if selection is None else selection.projections)
    figure = Picture(figsize=(max(4.2 * len(panels), 6.0), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, projection in zip(axes, panels, strict=True):
        importances = {row.layer: row.importance for row in scored if row.projection == projection}
        whole = Layers(tuple(sorted(importances)), (), 1.0)
        layers = whole if selection is None else selection.projections[projection]
        axis.bar(layers.retained, [importances[layer] for layer in layers.retained], **RETAINED)
        axis.bar(layers.shared, [importances[layer] for layer in layers.shared], **SHARED)
        held = f": {len(layers.retained)} of {len(importances)} layers hold {layers.coverage:.0%}" if selection else ""
        axis.set_title(projection + held, fontsize=10)
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("importance")
    if selection is not None:
        rest = "shared" if selection.share else "without LoRA"
        patches = [
            Patch(**RETAINED, label="retained"),
            Patch(facecolor=SHARED["color"], hatch="///", edgecolor="white", label=rest),
        ]
        axes[-1].legend(handles=patches, frameon=False, fontsize=9)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def criteria_figure(
    modules: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
    taus: Sequence[Mapping[str, Any]],
    title: str,
) -> Figure:
    """Draw what several criteria say of each layer, and how far they agree; a column per projection.

    Args:
        modules: by criterion, a row per LoRA with `projection`, `layer` and `importance`.
        titles: of the criteria.
        taus: Kendall's τ, as `agreement` returns them.
        title: of the whole.

    Above, a strip per criterion: the darker a layer, the more important (black: the most important of its row). Below,
    the rank correlation of every two.
    """
    names = list(modules)
    projections = list(dict.fromkeys(row["projection"] for row in modules[names[0]]))
    height = 0.32 * len(names) + 0.9
    figure = Picture(figsize=(1.6 + 4.2 * len(projections), 2 * height + 1.2), layout="constrained")
    axes = figure.subplots(2, len(projections), squeeze=False, sharey="row")
    for column, projection in enumerate(projections):
        strips = [by_layer(modules[name], projection) for name in names]
        layers = sorted(strips[0])
        heat = [[strip[layer] / max(strip.values()) for layer in layers] for strip in strips]
        above, below = axes[0][column], axes[1][column]
        above.imshow(heat, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        above.set_title(plain(projection), fontsize=10)
        above.set_xlabel("layer")
        step = max(1, len(layers) // 12)
        above.set_xticks(range(0, len(layers), step), layers[::step])
        _tau_matrix(below, names, [row for row in taus if row["projection"] == projection])
    for row in axes:
        row[0].set_yticks(range(len(names)), [plain(titles[name]) for name in names], fontsize=8)
    figure.suptitle(f"{plain(title)}: importance by criterion (above), Kendall τ (below)", fontsize=11)
    return figure


def _tau_matrix(axis: Axes, names: Sequence[str], taus: Sequence[Mapping[str, Any]]) -> None:
    values = np.eye(len(names))
    for row in taus:
        one, two = names.index(row["one"]), names.index(row["two"])
        values[one, two] = values[two, one] = np.nan if row["tau"] is None else row["tau"]
    axis.imshow(values, cmap="Blues", vmin=-1, vmax=1, aspect="auto")
    for (one, two), value in np.ndenumerate(values):
        said = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(two, one, said, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black")
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: a path may hold dollar signs, which would begin a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    figure.savefig(temporary, dpi=150, metadata=_NO_DATES[path.suffix])
    temporary.replace(path)
