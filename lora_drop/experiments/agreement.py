"""Importances of records, and how far those of two rows, or of two seeds, rank the layers alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.pruning.agreement import by_layer
from lora_drop.pruning.agreement import kendall as tau


def scored(table: Table) -> list[Record]:
    """Return the records with importances."""
    return [record for record in table.records if record.scores]


def scored_by_row(table: Table) -> dict[str, list[Record]]:
    """Return the records with importances by the title of their row, in the table's order."""
    records = scored(table)
    rows = {row.title: [record for record in records if record.row == row.name] for row in table.rows}
    return {title: mine for title, mine in rows.items() if mine}


def warm_ups_by_task(table: Table) -> dict[str, list[Record]]:
    """Return by the task's title the first record with importances of each seed: rows that only select differently
    share a warm-up."""
    first: dict[tuple[str, int], Record] = {}
    for row in table.rows:
        for record in scored(table):
            if record.row == row.name:
                first.setdefault((record.task, record.seed), record)
    by_task: dict[str, list[Record]] = {}
    for record in first.values():
        by_task.setdefault(record.task_title, []).append(record)
    return by_task


def projections_of(table: Table) -> list[str]:
    """Return the projections that have importances."""
    return list(dict.fromkeys(row["projection"] for record in scored(table) for row in record.scores))


def importances_of(rows: Sequence[Mapping[str, Any]], projection: str) -> list[float]:
    """Return the importances of one projection in the order of its layers."""
    return [importance for _, importance in sorted(by_layer(rows, projection).items())]


def mean_importances(records: Sequence[Record], projection: str) -> np.ndarray:
    """Return the importances of one projection, mean over records."""
    return np.mean([importances_of(record.scores, projection) for record in records], axis=0)


def kendall(table: Table, projection: str) -> dict[tuple[str, str], float]:
    """Return the rank correlation (Kendall τ-b) of the layers' importances for every two rows, by their titles."""
    means = {title: mean_importances(records, projection) for title, records in scored_by_row(table).items()}
    return {(one, two): tau(list(means[one]), list(means[two])) for one, two in combinations(means, 2)}


def between_seeds(records: Sequence[Record], projection: str) -> list[float]:
    """Return the rank correlation of the layers' importances for every two runs, which differ in their seed."""
    found = [importances_of(record.scores, projection) for record in records]
    return [tau(one, two) for one, two in combinations(found, 2)]


def retained_alike(records: Sequence[Record], projection: str) -> str:
    """Return of how many retained layers two runs have how many in common, mean over every two; empty if none select."""
    chosen = [set(each.selection["projections"][projection]["retained"]) for each in records if each.selection]
    if len(chosen) < 2:
        return ""
    common = np.mean([len(one & two) for one, two in combinations(chosen, 2)])
    return f"{common:.1f} of {np.mean(list(map(len, chosen))):.1f}"
