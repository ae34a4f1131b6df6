"""The figure of part `scaling`: one panel for each size of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from lora_drop.experiments.plots import DARK, LIGHT

TITLES = {"rows": "rows", "length": "tokens a row", "layers": "layers", "rank": "rank of LoRA"}


def scaling_figure(measured: Mapping[str, Any]) -> Figure:
    """Draw seconds of a step against each size, both logarithmic; the dashed line is what the operations alone would give."""
    axes_of = measured["axes"]
    figure = Figure(figsize=(3.0 * len(axes_of), 3.2), layout="constrained")
    panels = figure.subplots(1, len(axes_of), squeeze=False, sharey=True)[0]
    for panel, (name, axis) in zip(panels, axes_of.items(), strict=True):
        medians = [one["median"] for one in axis["seconds"]]
        low = [one["median"] - one["low"] for one in axis["seconds"]]
        high = [one["high"] - one["median"] for one in axis["seconds"]]
        expected = [medians[-1] * flops / axis["flops"][-1] for flops in axis["flops"]]
        panel.plot(axis["values"], expected, "--", color=LIGHT, label="operations alone")
        panel.errorbar(
            axis["values"], medians, yerr=[low, high], fmt="o-", color=DARK, markersize=5, capsize=3, label="measured"
        )
        panel.set(xscale="log", yscale="log", xlabel=TITLES[name])
        panel.xaxis.set_major_locator(FixedLocator(axis["values"]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_title(
            f"exponent {axis['exponent']:.2f}, of the operations {axis['exponent_of_flops']:.2f}", fontsize=9
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds of a training step")
    panels[0].legend(frameon=False, fontsize=8)
    return figure
