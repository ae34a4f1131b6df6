"""Figures, readable in grey: what is retained is dark, what is shared is light and hatched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lora_drop.selection import Scored, Selection

RETAINED: dict[str, Any] = {"color": "#1f4e79"}
SHARED: dict[str, Any] = {"color": "#d9b38c", "hatch": "///", "edgecolor": "white"}


_NO_DATES: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def importance_figure(scored: Sequence[Scored], selection: Selection, title: str) -> Figure:
    """Draw the importance of each layer, one panel per projection, retained and low-importance layers in two colours."""
    panels = list(selection.projections)
    figure = Figure(figsize=(max(4.2 * len(panels), 6.0), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, projection in zip(axes, panels, strict=True):
        layers = selection.projections[projection]
        importances = {row.layer: row.importance for row in scored if row.projection == projection}
        axis.bar(layers.retained, [importances[layer] for layer in layers.retained], **RETAINED)
        axis.bar(layers.shared, [importances[layer] for layer in layers.shared], **SHARED)
        axis.set_title(
            f"{projection}: {len(layers.retained)} of {len(importances)} layers hold {layers.coverage:.0%}", fontsize=10
        )
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("importance")
    rest = "shared" if selection.share else "without LoRA"
    patches = [
        Patch(**RETAINED, label="retained"),
        Patch(facecolor=SHARED["color"], hatch="///", edgecolor="white", label=rest),
    ]
    axes[-1].legend(handles=patches, frameon=False, fontsize=9)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: a path may hold dollar signs, which would begin a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    figure.savefig(temporary, dpi=150, metadata=_NO_DATES[path.suffix])
    temporary.replace(path)
