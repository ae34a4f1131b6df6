"""A figure of the rows per second of every training, with one panel per model. It is readable in grey."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bench.table import Found

DARK, LIGHT = "#1f4e79", "#d9b38c"


def speeds(found: Found, title: str) -> Figure | None:
    """Draw medians with quartiles, ours dark; return None if nothing was trained."""
    parts = [part for part in found.values() if "computed" in part and "subject" in part]
    if not parts:
        return None
    figure = Figure(figsize=(5.2 * len(parts), 3.2), layout="constrained")
    for panel, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        names = list(part["computed"])[::-1]
        measured = [part["numbers"][f"{name}, samples/s"] for name in names]
        medians = [one["median"] for one in measured]
        error = [[one["median"] - one["low"] for one in measured], [one["high"] - one["median"] for one in measured]]
        colors = [DARK if name.startswith("ours") else LIGHT for name in names]
        panel.barh(names, medians, xerr=error, color=colors, error_kw={"capsize": 3})
        panel.set_title(_title(part["subject"]), fontsize=10)
        panel.set_xlabel("rows a second")
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure


def _title(subject: Mapping[str, Any]) -> str:
    name = str(subject["backbone"]).rstrip("/").rsplit("/", 1)[-1]
    return f"{name}, {subject['task']}, {subject['tokens'] / subject['rows']:.0f} tokens a row"
