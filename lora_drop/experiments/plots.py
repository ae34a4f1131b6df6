"""The figures of an experiment, drawn from its records. Readable in grey: what differs differs in lightness, hatching or marker, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from lora_drop.experiments.agreement import (
    importances_of,
    kendall,
    mean_importances,
    one_warm_up_a_seed,
    projections_of,
    scored,
    scored_by_row,
)
from lora_drop.experiments.figures import plain
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table

DARK, MIDDLE, LIGHT = "#1f4e79", "#6b8fb3", "#d9b38c"
MARKERS = "osD^vP*Xd<>p"


def tradeoff(table: Table) -> Figure | None:
    """Score against trainable parameters, one panel per task, one marker per row; bars are standard deviations over seeds."""
    columns = [column for column in table.columns if any(column.key in row.cells for row in table.rows)]
    if not columns:
        return None
    sizes = [row.parameters for row in table.rows if row.parameters]
    wide = max(sizes) > 100 * min(sizes)
    figure, axes = _panels(1, len(columns), width=3.2, height=3.4, sharex=True)
    for axis, column in zip(axes[0], columns, strict=True):
        for number, row in enumerate(table.rows):
            cell = row.cells.get(column.key)
            if cell is None or row.parameters is None:
                continue
            shade = _grey(number, len(table.rows))
            axis.errorbar(
                row.parameters,
                cell.mean,
                yerr=cell.deviation,
                fmt=MARKERS[number % len(MARKERS)],
                color=shade,
                markeredgecolor="black",
                markersize=7,
                capsize=3,
                label=plain(row.title),
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(plain(column.title), fontsize=10)
        axis.set_xlabel("trainable parameters")
    axes[0][0].set_ylabel("score")
    # a row may be missing in a panel: its task was not run
    shown = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = [title for row in table.rows if (title := plain(row.title)) in shown]
    figure.legend(
        [shown[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=int(figure.get_figwidth() / 1.5),
        frameon=False,
        fontsize=8,
    )
    return figure


def importance(table: Table) -> Figure | None:
    """Importance per layer, a column of panels per task, a row per projection; mean over seeds."""
    by_task: dict[str, list[Record]] = {}
    if not scored(table):
        return None
    for record in one_warm_up_a_seed(table):
        by_task.setdefault(record.task_title, []).append(record)
    projections = projections_of(table)
    figure, axes = _panels(len(projections), len(by_task), width=2.9, height=2.3, sharey="row")
    for across, (title, records) in enumerate(by_task.items()):
        for down, projection in enumerate(projections):
            values = mean_importances(records, projection)
            axes[down][across].bar(range(len(values)), values, color=DARK)
            _layer_axis(axes[down][across], len(values))
        axes[0][across].set_title(f"{plain(title)} (n = {len(records)} seed{'s' * (len(records) > 1)})", fontsize=10)
    _label_rows(axes, projections, "importance")
    return figure


def distribution(table: Table) -> Figure | None:
    """Distribution of ‖ΔW x‖² over the examples of the sample, per layer; boxes hold the middle half, whiskers 5 to 95 %."""
    record = next((record for record in table.records if record.norms), None)
    if record is None:
        return None
    projections = list(dict.fromkeys(row["projection"] for row in record.norms))
    figure, axes = _panels(1, len(projections), width=4.4, height=3.2, sharey=True)
    for axis, projection in zip(axes[0], projections, strict=True):
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
        axis.set_title(projection, fontsize=10)
        _layer_axis(axis, len(rows))
    axes[0][0].set_ylabel("‖ΔWx‖² of an example")
    figure.suptitle(
        f"{plain(f'{record.task_title}, {record.backbone}')}, {len(record.norms[0]['norms']):,} examples, seed {record.seed}",
        fontsize=10,
    )
    return figure


def sharing(table: Table) -> Figure | None:
    """Importance per layer before sharing (the warmed-up LoRA) and after (the trained LoRA-drop); shared layers are hatched."""
    record = next((record for record in table.records if record.trained_scores), None)
    if record is None:
        return None
    projections = projections_of(table)
    figure, axes = _panels(1, len(projections), width=4.4, height=3.2, sharey=True)
    for axis, projection in zip(axes[0], projections, strict=True):
        before, after = (importances_of(rows, projection) for rows in (record.scores, record.trained_scores))
        layers = np.arange(len(before))
        shared = set(record.selection["projections"][projection]["shared"])
        axis.bar(layers - 0.2, before, 0.4, color=DARK, label="before sharing")
        for layer, value in zip(layers, after, strict=True):
            hatch = "////" if layer in shared else ""
            axis.bar(layer + 0.2, value, 0.4, color=LIGHT, edgecolor="black", linewidth=0.4, hatch=hatch)
        axis.bar(0, 0, color=LIGHT, edgecolor="black", linewidth=0.4, label="after, own LoRA")
        axis.bar(0, 0, color=LIGHT, edgecolor="black", linewidth=0.4, hatch="////", label="after, shared LoRA")
        axis.set_title(projection, fontsize=10)
        _layer_axis(axis, len(before))
    axes[0][0].set_ylabel("importance")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(plain(f"{record.task_title}, {record.backbone}, seed {record.seed}"), fontsize=10)
    return figure


def ratios(table: Table) -> Figure | None:
    """Importance per layer, one line per sample ratio, the larger the darker; mean over seeds."""
    projections, by_row = projections_of(table), scored_by_row(table)
    if not by_row:
        return None
    figure, axes = _panels(1, len(projections), width=4.4, height=3.2, sharey=True)
    for axis, projection in zip(axes[0], projections, strict=True):
        for number, (title, records) in enumerate(by_row.items()):
            values = mean_importances(records, projection)
            shade = _grey(len(by_row) - 1 - number, len(by_row))
            axis.plot(
                values,
                marker=MARKERS[number % len(MARKERS)],
                color=shade,
                markersize=4,
                linewidth=1,
                label=plain(title),
            )
        taus = [tau for tau in kendall(table, projection).values() if not np.isnan(tau)]
        agreement = f": Kendall τ {np.mean(taus):.2f} on average, at least {min(taus):.2f}" if taus else ""
        axis.set_title(f"{projection}{agreement}", fontsize=10)
        _layer_axis(axis, len(values))
    axes[0][0].set_ylabel("importance")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        title="sample ratio",
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
    return figure


FIGURES: dict[str, Callable[[Table], Figure | None]] = {
    "tradeoff": tradeoff,
    "importance": importance,
    "distribution": distribution,
    "sharing": sharing,
    "ratios": ratios,
}
"""What an experiment's `figures` may name; None where nothing of it was measured yet."""


def _grey(number: int, total: int) -> str:
    """Return a shade from nearly black to light grey."""
    return str(round(0.05 + 0.8 * number / max(total - 1, 1), 3))


def _panels(down: int, across: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(max(width * across, 4.5), height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _layer_axis(axis: Any, layers: int) -> None:
    axis.set_xlabel("layer")
    axis.set_xlim(-0.7, layers - 0.3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _label_rows(axes: Any, names: Sequence[str], what: str) -> None:
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(f"{name} {what}")
