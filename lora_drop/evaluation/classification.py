"""The GLUE metrics (paper §4.1), computed with scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import evaluate
import numpy as np
from datasets import Features, Value
from scipy import stats
from sklearn import metrics

from lora_drop.tasks.base import Task


def _correlation(function: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    """A constant prediction has no correlation with anything: report 0, as GLUE's leaderboard does, instead of NaN with a warning."""

    def compute(predictions: np.ndarray, references: np.ndarray) -> float:
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return 0.0
        return float(function(predictions, references).statistic)

    return compute


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, references: float(np.mean(predictions == references)),
    "f1": lambda predictions, references: float(metrics.f1_score(references, predictions, zero_division=0.0)),
    "matthews_correlation": lambda predictions, references: float(metrics.matthews_corrcoef(references, predictions)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


class GlueMetric(evaluate.Metric):
    """Several named metrics over one set of predictions, as fractions: accuracy, f1 (of label 1), matthews_correlation, pearson, spearman."""

    def __init__(self, names: Sequence[str]):
        """Compute the metrics of these names (keys of FUNCTIONS)."""
        self.names = tuple(names)
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("float64"), "references": Value("float64")})
        return evaluate.MetricInfo(description=", ".join(self.names), citation="", features=features)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        arrays = np.asarray(predictions), np.asarray(references)
        return {name: FUNCTIONS[name](*arrays) for name in self.names}


def evaluate_predictions(
    task: Task, predictions: Sequence[float], references: Sequence[float], groups: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the task's metrics over all rows, and per group where a split has parts (MNLI: accuracy_matched, accuracy_mismatched).

    Args:
        task: a classification or regression task.
        predictions: label indices, or scores for regression; one per row.
        references: the same, from the data.
        groups: the part of the split each row belongs to.
    """
    metric = GlueMetric(task.metrics)
    results = dict(metric.compute(predictions=predictions, references=references))
    parts = sorted(set(groups or ()))
    for part in parts if len(parts) > 1 else ():
        rows = [index for index, group in enumerate(groups or ()) if group == part]
        part_metric = metric.compute(predictions=[predictions[row] for row in rows], references=[references[row] for row in rows])
        results |= {f"{name}_{part}": value for name, value in part_metric.items()}
    return results
