"""The outcome of an evaluation, for every task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_drop.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The outcome of stage 5, all that a task's kind decides about it."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    """One object per row, in the rows' order: `id`, `prediction`, and `reference` or `references`."""
    details: dict[str, Any] = field(default_factory=dict)
    """More for `metrics.json`: for labels and numbers the scores of a constant prediction (`baseline`); for texts how each number was counted
    (`signatures`), and those left out with the reason (`skipped`)."""


def check_finite(predicted: Any) -> None:
    """Raise UserError if what a model puts out, one number or many, is not a number: it has diverged."""
    if not np.isfinite(predicted).all():
        raise UserError("The model predicts NaN: its training diverged. Lower train.learning_rate.")
