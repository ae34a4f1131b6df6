"""Metrics of rows that may have several labels: F1 over all decisions and over labels, and the share of whole rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score

from lora_drop.evaluation.base import check_finite

Rows = Sequence[Sequence[int]]
"""For each row, 1 or 0 for each label."""


def evaluate_several(
    names: Sequence[str], logits: Sequence[Sequence[float]], predictions: Rows, references: Rows
) -> dict[str, float]:
    """Return the metrics of these names: f1_micro, f1_macro, accuracy (of rows whose labels are all right).

    Raises:
        UserError: if what the model puts out is not a number: it has diverged.
    """
    check_finite(logits)
    return _scores(names, np.asarray(predictions), np.asarray(references))


def constant_several(names: Sequence[str], references: Rows) -> dict[str, float]:
    """Return what each row with the same labels scores: those that more than half of the rows have, or the commonest."""
    actual = np.asarray(references)
    share = actual.mean(axis=0)
    constant = (share > 0.5) if (share > 0.5).any() else (share == share.max())
    return _scores(names, np.broadcast_to(constant.astype(int), actual.shape), actual)


def _scores(names: Sequence[str], given: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    found = {"accuracy": float((given == actual).all(axis=1).mean())}
    for average in ("micro", "macro"):
        found[f"f1_{average}"] = float(f1_score(actual, given, average=average, zero_division=0.0))
    return {name: found[name] for name in names}
