"""Detect the columns of a table in which nothing was learnt: no run scores above a constant prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lora_drop.experiments.records import Record

MAJORITY = {"rte": 146 / 277, "mrpc": 279 / 408, "sst2": 444 / 872, "qnli": 2761 / 5463}
"""Share of the most frequent label in the official validation split, for records that do not hold their `baseline`."""
CORRELATIONS = ("matthews_correlation", "spearman", "pearson")
"""Metrics that are 0 for any constant prediction."""
ERRORS = 2
"""Standard errors above a constant prediction that still count as chance: a column shows many runs' best epochs."""


def nothing_learnt(records: Iterable[Record], metric: str) -> bool:
    """Return True if all of these runs are known to stay within chance of a constant prediction."""
    bounds = [(record.metrics[metric], _bound(record, metric)) for record in records if metric in record.metrics]
    return bool(bounds) and all(bound is not None and score <= bound for score, bound in bounds)


def _bound(record: Record, metric: str) -> float | None:
    """Return the highest score that may be chance; None if there is no such bound.

    Text metrics have none, nor has f1, as its standard error does not follow from the number of rows.
    """
    if metric in CORRELATIONS:
        return ERRORS / math.sqrt(max(record.examples - 1, 1))
    share = record.baseline.get(metric, MAJORITY.get(record.task) if record.split == "validation" else None)
    if metric != "accuracy" or share is None:
        return None
    return share + ERRORS * math.sqrt(share * (1 - share) / record.examples)
