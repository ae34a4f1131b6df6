"""The importances in records, and the agreement of two rows, or of two seeds, on the ranking of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Row, Table
from lora_drop.pruning.agreement import by_layer, kendall


def scored(table: Table) -> list[Record]:
    """Return the records with importances."""
    return [record for record in table.records if record.scores]


def having(records: Iterable[Record], projection: str) -> list[Record]:
    """Return the records with importances of a projection; some rows of a table may target other projections."""
    return [record for record in records if any(row["projection"] == projection for row in record.scores)]


def scored_by_row(table: Table, projection: str | None = None) -> dict[str, list[Record]]:
    """Return the records with importances (of a projection) by the title of their row, in the table's order."""
    records = scored(table) if projection is None else having(scored(table), projection)
    rows = {row.title: [record for record in records if record.row == row.name] for row in table.rows}
    return {title: mine for title, mine in rows.items() if mine}


def row_of_choices(table: Table) -> Row | None:
    """Return the LoRA-drop row with the most runs that select layers, the first one in a tie; None if there is none."""
    counted = Counter(record.row for record in scored(table) if record.own and record.selection)
    return max(table.rows, key=lambda row: counted[row.name]) if counted else None


def warm_ups_by_task(table: Table) -> dict[str, list[Record]]:
    """Return, by the task's title, the records with importances of one row: one for each of its seeds.

    The row is `row_of_choices` if it has the task, else the first that has it. Rows that only select differently share
    a warm-up, so those of several rows would be counted twice, and what they retain cannot be compared.
    """
    chosen = row_of_choices(table)
    order = {row.name: place for place, row in enumerate(sorted(table.rows, key=lambda row: row is not chosen))}
    by_task: dict[str, list[Record]] = {}
    for record in scored(table):
        taken = by_task.setdefault(record.task_title, [])
        if taken and order[record.row] < order[taken[0].row]:
            taken.clear()
        if not taken or record.row == taken[0].row:
            taken.append(record)
    return by_task


def projections_of(records: Iterable[Record]) -> list[str]:
    """Return the projections that have importances."""
    return list(dict.fromkeys(row["projection"] for record in records for row in record.scores))


def importances_of(rows: Sequence[Mapping[str, Any]], projection: str) -> list[float]:
    """Return the importances of one projection in the order of its layers."""
    return [importance for _, importance in sorted(by_layer(rows, projection).items())]


def mean_importances(records: Sequence[Record], projection: str) -> np.ndarray:
    """Return the importances of one projection, averaged over the records that have it; empty if none has."""
    found = [importances_of(record.scores, projection) for record in having(records, projection)]
    return np.mean(found, axis=0) if found else np.empty(0)


def between_rows(table: Table, projection: str) -> dict[tuple[str, str], float]:
    """Return the rank correlation (Kendall's τ-b) of the layers' importances, by the titles of each pair of rows.

    Rows without the projection are left out.
    """
    rows = scored_by_row(table, projection)
    means = {title: mean_importances(records, projection) for title, records in rows.items()}
    return {(one, two): kendall(list(means[one]), list(means[two])) for one, two in combinations(means, 2)}


def between_seeds(records: Sequence[Record], projection: str) -> list[float]:
    """Return the rank correlation of the layers' importances for each pair of runs, which differ in their seed."""
    found = [importances_of(record.scores, projection) for record in having(records, projection)]
    return [kendall(one, two) for one, two in combinations(found, 2)]


def retained_alike(records: Sequence[Record], projection: str) -> str:
    """Return the mean number of retained layers that two runs share, and the mean number retained, as text.

    Empty if fewer than two runs select layers.
    """
    parts = [each.selection.get("projections", {}).get(projection) for each in records]
    chosen = [set(part["retained"]) for part in parts if part]
    if len(chosen) < 2:
        return ""
    common = np.mean([len(one & two) for one, two in combinations(chosen, 2)])
    return f"{common:.1f} of {np.mean(list(map(len, chosen))):.1f}"


@dataclass(frozen=True)
class Alike:
    """Agreement of two warm-ups on a projection, averaged over all pairs of one kind."""

    tau: float
    """Kendall's τ-b of their importances."""
    common: float
    """Share of retained layers in common: twice their number, divided by the sum of both numbers of retained layers."""
    chance: float
    """The same share for two random choices of as many layers."""


def seeds_and_tasks(by_task: Mapping[str, Sequence[Record]], projection: str) -> tuple[Alike, Alike] | None:
    """Return the agreement of two seeds of a task, and of runs of two tasks, among runs that select layers.

    None unless there are pairs of both kinds.
    """
    runs = [
        (task, record)
        for task, mine in by_task.items()
        for record in mine
        if projection in record.selection.get("projections", {})
    ]
    pairs = [(one, other, task == another) for (task, one), (another, other) in combinations(runs, 2)]
    same, different = ([(one, other) for one, other, alike in pairs if alike is kind] for kind in (True, False))
    return (_alike(same, projection), _alike(different, projection)) if same and different else None


def _alike(pairs: Sequence[tuple[Record, Record]], projection: str) -> Alike:
    taus, commons, chances = [], [], []
    for pair in pairs:
        one, two = (importances_of(record.scores, projection) for record in pair)
        taus.append(kendall(one, two))
        chosen, other = (set(record.selection["projections"][projection]["retained"]) for record in pair)
        both = max(len(chosen) + len(other), 1)
        commons.append(2 * len(chosen & other) / both)
        chances.append(2 * len(chosen) * len(other) / len(one) / both)
    return Alike(*(float(np.mean(values)) for values in (taus, commons, chances)))
