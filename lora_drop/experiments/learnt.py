"""Columns of a table in which nothing was learnt: no run is above what a constant prediction scores."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lora_drop.experiments.records import Record

MAJORITY = {"rte": 146 / 277, "mrpc": 279 / 408, "sst2": 444 / 872, "qnli": 2761 / 5463}
"""Share of the most frequent label in the official validation split, for records that do not hold their `baseline`."""
CORRELATIONS = ("matthews_correlation", "spearman", "pearson")
"""0 for any constant prediction."""
ERRORS = 2
"""So many standard errors above a constant prediction are still chance: a column shows many runs' best epochs."""


def nothing_learnt(records: Iterable[Record], metric: str) -> bool:
    """Return True if all of these runs stay within chance of a constant prediction, where that is known."""
    bounds = [(record.metrics[metric], _bound(record, metric)) for record in records if metric in record.metrics]
    return bool(bounds) and all(bound is not None and score <= bound for score, bound in bounds)


def _bound(record: Record, metric: str) -> float | None:
    """Return the highest score that may be chance; None where there is no such bound (texts; f1, whose error is not
    n's)."""
    if metric in CORRELATIONS:
        return ERRORS / math.sqrt(max(record.examples - 1, 1))
    share = record.baseline.get(metric, MAJORITY.get(record.task) if record.split == "validation" else None)
    if metric != "accuracy" or share is None:
        return None
    return share + ERRORS * math.sqrt(share * (1 - share) / record.examples)
