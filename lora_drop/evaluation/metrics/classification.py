"""The GLUE metrics (paper §4.1), computed with scikit-learn and SciPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import evaluate
import numpy as np
from datasets import Features, Value
from scipy import stats
from sklearn import metrics

from lora_drop.evaluation.base import check_finite
from lora_drop.evaluation.metrics.text_metric import InMemory
from lora_drop.tasks.base import Task

Function = Callable[[np.ndarray, np.ndarray], float]
"""Of predictions and references."""


def _association(function: Function) -> Function:
    """Report 0 where one side is constant: NaN would hide that the model learnt nothing."""

    def compute(predictions: np.ndarray, references: np.ndarray) -> float:
        tiny = 1e-9 * max(1.0, float(np.abs(predictions).max()))  # differences of rounding alone are no ranking
        if np.ptp(predictions) <= tiny or np.ptp(references) == 0:
            return 0.0
        return float(function(predictions, references))

    return compute


def _f1(predictions: np.ndarray, references: np.ndarray, average: str = "binary") -> float:
    """F1 of label 1, of each class that occurs, averaged (macro), or of all decisions (micro)."""
    return float(metrics.f1_score(references, predictions, average=average, zero_division=0.0))


FUNCTIONS: dict[str, Function] = {
    "accuracy": lambda predictions, references: float(np.mean(predictions == references)),
    "f1": _f1,
    "f1_macro": partial(_f1, average="macro"),
    "f1_micro": partial(_f1, average="micro"),
    "matthews_correlation": _association(
        lambda predictions, references: metrics.matthews_corrcoef(references, predictions)
    ),
    "pearson": _association(lambda predictions, references: stats.pearsonr(predictions, references).statistic),
    "spearman": _association(lambda predictions, references: stats.spearmanr(predictions, references).statistic),
}


class GlueMetric(InMemory):
    """Several named metrics over one set of predictions, as fractions; f1 is that of label 1."""

    def __init__(self, names: Sequence[str]):
        """Compute the metrics of these names (keys of FUNCTIONS)."""
        self.names = tuple(names)
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("float64"), "references": Value("float64")})
        return evaluate.MetricInfo(description=", ".join(self.names), citation="", features=features)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        arrays = np.asarray(predictions), np.asarray(references)
        return {name: FUNCTIONS[name](*arrays) for name in self.names}


def evaluate_predictions(
    task: Task, predictions: Sequence[float], references: Sequence[float], groups: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the task's metrics over all rows, and per group where a split has parts (MNLI: accuracy_matched, …).

    Args:
        task: a classification or regression task.
        predictions: label indices, or scores for regression; one per row.
        references: the same, from the data.
        groups: the part of the split each row belongs to.

    Raises:
        UserError: if a prediction is not a number: the model has diverged.
    """
    check_finite(predictions)
    metric = GlueMetric(task.metrics)
    results = dict(metric.compute(predictions=predictions, references=references))
    parts = sorted(set(groups or ()))
    for part in parts if len(parts) > 1 else ():
        rows = [index for index, group in enumerate(groups or ()) if group == part]
        part_metric = metric.compute(
            predictions=[predictions[row] for row in rows], references=[references[row] for row in rows]
        )
        results |= {f"{name}_{part}": value for name, value in part_metric.items()}
    return results


def constant_baseline(task: Task, references: Sequence[float], groups: Sequence[str] | None = None) -> dict[str, float]:
    """Return what the most frequent label scores when it is predicted for every row; of a regression, the mean."""
    constant = Counter(references).most_common(1)[0][0] if task.labels else float(np.mean(references))
    return evaluate_predictions(task, [constant] * len(references), references, groups)
