"""Base classes: `InMemory` for all metrics, and `TextMetric` for those of texts, which state their protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import evaluate
from datasets import Features, List, Value


class InMemory(evaluate.Metric):
    """An `evaluate.Metric` that keeps its data in memory; the base class would create a folder in the user's cache."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""


class TextMetric(InMemory):
    """One protocol for comparing texts with references. It may produce several metrics.

    `compute(predictions=[text, …], references=[[text, …], …])` returns a number from 0 to 100 for each of `names`.
    Afterwards `signatures` states how each was computed. Every prediction needs one or more references.
    """

    names: ClassVar[tuple[str, ...]]
    description: ClassVar[str]
    needs_prompts: ClassVar[bool] = False
    """True if `compute` also needs `prompts=[text, …]`, what the texts were written for."""

    def __init__(self, as_written: bool = True):
        """Make the metric.

        Args:
            as_written: True to compare predictions unchanged, even if the protocol's references have a special form
                (DART's are lower-cased and tokenised). Otherwise predictions are converted to that form first.
        """
        self.as_written = as_written
        self.signatures: dict[str, str] = {}
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": List(Value("string"))})
        return evaluate.MetricInfo(description=self.description, citation="", features=features)


def mean_percent(values: Sequence[float]) -> float:
    """Return the mean of one or more fractions, as a percentage."""
    return 100 * sum(values) / len(values)
