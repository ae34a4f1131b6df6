"""A figure that compares several criteria: the importance each gives to every layer, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_drop.pruning.agreement import by_layer
from lora_drop.pruning.picture import Picture, plain


def criteria_figure(
    modules: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
    taus: Sequence[Mapping[str, Any]],
    title: str,
) -> Figure:
    """Draw the importance of each layer by several criteria, and how far these agree; a column per projection.

    The upper row has a strip per criterion: the darker a layer, the more important (black is the most important of its
    strip). The lower row shows the rank correlation of every pair of criteria.

    Args:
        modules: by criterion, a row per LoRA with `projection`, `layer` and `importance`.
        titles: title of each criterion.
        taus: Kendall's τ, as `agreement` returns it.
        title: title of the figure.
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
