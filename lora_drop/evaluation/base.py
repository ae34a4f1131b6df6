"""The outcome of an evaluation, for every task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_drop.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The outcome of stage 5, as far as it depends on the kind of the task."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    """One object per row, in the rows' order: `id`, `prediction`, and `reference` or `references`."""
    details: dict[str, Any] = field(default_factory=dict)
    """More entries for `metrics.json`. For labels and numbers: the scores of a constant prediction (`baseline`). For
    texts: how each metric was computed (`signatures`), and metrics left out with the reason (`skipped`)."""
    notices: list[str] = field(default_factory=list)
    """Sentences for the user about rows that were cut."""


def check_finite(predicted: Any) -> None:
    """Raise UserError if any output of a model (one number or many) is not finite: its training has diverged."""
    if not np.isfinite(predicted).all():
        raise UserError("The model predicts NaN: its training diverged. Lower train.learning_rate.")
