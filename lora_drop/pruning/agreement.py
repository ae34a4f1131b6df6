"""Agreement between criteria: Kendall's τ-b of the importances that two of them give to a projection's layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any


def agreement(modules: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rank correlation of every pair of criteria on every projection.

    Args:
        modules: by criterion, a row per LoRA with `projection`, `layer` and `importance`; the same LoRAs in each.

    Returns:
        Rows `projection, one, two, tau`. tau is 1 if both criteria give the layers the same order, -1 if they give them
        the opposite order, and None if it is undefined (one layer, or all importances equal).
    """
    found = []
    for projection in dict.fromkeys(row["projection"] for rows in modules.values() for row in rows):
        by_criterion = {name: by_layer(rows, projection) for name, rows in modules.items()}
        for one, two in combinations(by_criterion, 2):
            values = [(by_criterion[one][layer], by_criterion[two][layer]) for layer in sorted(by_criterion[one])]
            tau = kendall(*zip(*values, strict=True))
            found.append({"projection": projection, "one": one, "two": two, "tau": None if math.isnan(tau) else tau})
    return found


def kendall(one: Sequence[float], two: Sequence[float]) -> float:
    """Return Kendall's τ-b of two lists of values, or NaN if it is undefined."""
    from scipy import stats

    return float(stats.kendalltau(one, two).statistic) if len(one) > 1 else math.nan


def by_layer(rows: Sequence[Mapping[str, Any]], projection: str) -> dict[int, float]:
    """Return the importances of one projection by layer."""
    return {row["layer"]: row["importance"] for row in rows if row["projection"] == projection}
