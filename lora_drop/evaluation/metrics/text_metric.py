"""The base of all metrics, an `evaluate.Metric` in memory, and that of text metrics, which name their protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import evaluate
from datasets import Features, List, Value


class InMemory(evaluate.Metric):
    """A metric that keeps what it compares in memory: the base class would make a folder in the user's cache."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""


class TextMetric(InMemory):
    """One protocol for comparing texts with references; it may give several numbers.

    `compute(predictions=[text, …], references=[[text, …], …])` returns a number from 0 to 100 for each of `names`;
    afterwards `signatures` says for each how it was counted. Every prediction needs one or more references.
    """

    names: ClassVar[tuple[str, ...]]
    description: ClassVar[str]

    def __init__(self, as_written: bool = True):
        """Make the metric.

        Args:
            as_written: True to compare predictions unchanged, even where the protocol's references are in a
                special form (DART's: lower-cased and tokenised); else they are brought into that form first.
        """
        self.as_written = as_written
        self.signatures: dict[str, str] = {}
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": List(Value("string"))})
        return evaluate.MetricInfo(description=self.description, citation="", features=features)


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one number, as a percentage of 1."""
    return 100 * sum(values) / len(values)
