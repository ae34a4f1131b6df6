"""Metrics for rows that may have several labels: F1 micro and macro, and the share of rows that are entirely right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score

Rows = Sequence[Sequence[int]]
"""For each row, 1 or 0 for each label."""


def evaluate_several(names: Sequence[str], predictions: Rows, references: Rows) -> dict[str, float]:
    """Return the metrics named: f1_micro, f1_macro, or accuracy (the share of rows with all labels right)."""
    given, actual = np.asarray(predictions), np.asarray(references)
    found = {"accuracy": float((given == actual).all(axis=1).mean())}
    for average in ("micro", "macro"):
        found[f"f1_{average}"] = float(f1_score(actual, given, average=average, zero_division=0.0))
    return {name: found[name] for name in names}


def constant_several(names: Sequence[str], references: Rows) -> dict[str, float]:
    """Return the scores of predicting the same labels for every row.

    These are the labels that more than half of the rows have, or, if there are none, the most frequent label or labels.
    """
    actual = np.asarray(references)
    share = actual.mean(axis=0)
    constant = (share > 0.5) if (share > 0.5).any() else (share == share.max())
    return evaluate_several(names, [constant.astype(int).tolist()] * len(actual), references)
