"""What an evaluation gives, whatever the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """The outcome of stage 5, all that a task's kind decides about it."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    """One object per row, in the rows' order: `id`, `prediction`, and `reference` or `references`."""
    details: dict[str, Any] = field(default_factory=dict)
    """What `metrics.json` also says: for labels and numbers what a constant prediction scores (`baseline`); for texts how each number was counted
    (`signatures`), and which were not and why (`skipped`)."""
