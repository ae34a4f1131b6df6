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
"""A metric of predictions and references."""


def _association(function: Function) -> Function:
    """Return `function`, but 0 if one side is constant: NaN would hide that the model learnt nothing."""

    def compute(predictions: np.ndarray, references: np.ndarray) -> float:
        tiny = 1e-9 * max(1.0, float(np.abs(predictions).max()))  # rounding differences are no ranking
        if np.ptp(predictions) <= tiny or np.ptp(references) == 0:
            return 0.0
        return float(function(predictions, references))

    return compute


def _f1(predictions: np.ndarray, references: np.ndarray, average: str = "binary") -> float:
    """Return F1 of label 1 ("binary"), the mean over classes that occur ("macro"), or over all decisions ("micro")."""
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
    """Several named metrics over one set of predictions, as fractions; f1 is the F1 of label 1."""

    def __init__(self, names: Sequence[str]):
        """Compute the metrics with these names (keys of FUNCTIONS)."""
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
    """Return the task's metrics over all rows, and per group if a split has parts (MNLI: accuracy_matched, …).

    Args:
        task: A classification or regression task.
        predictions: Label indices, or scores for regression; one per row.
        references: The same, from the data.
        groups: The part of the split that each row belongs to.

    Raises:
        UserError: If a prediction is not finite: training has diverged.
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
    """Return the scores of predicting the most frequent label for every row, or the mean in a regression task."""
    constant = Counter(references).most_common(1)[0][0] if task.labels else float(np.mean(references))
    return evaluate_predictions(task, [constant] * len(references), references, groups)
