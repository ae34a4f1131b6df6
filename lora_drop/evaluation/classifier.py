"""Predictions of a classifier for encoded rows, and their metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from lora_drop import processes
from lora_drop.data.sentences import Collate, batches
from lora_drop.evaluation.base import Evaluation, check_finite
from lora_drop.pruning.observation import eval_mode
from lora_drop.tasks.base import Task
from lora_drop.training.way import Way

THRESHOLD = 0.5
"""Probability above which a label is predicted, if rows may have several labels."""


def evaluate_classifier(
    model: nn.Module,
    task: Task,
    rows: Dataset,
    encoded: Dataset,
    collate: Collate,
    batch_size: int,
    way: Way | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate the model on `encoded`, the tokenised `rows`. Its train or eval mode is restored afterwards.

    Args:
        model: A classifier, with or without an adapter.
        task: Provides labels and metrics.
        rows: The rows to evaluate.
        encoded: Their tokens.
        collate: Pads rows to a batch.
        batch_size: Rows at a time. Batches of shorter rows are larger, up to the number of tokens of the first batch.
        way: How the model is computed; None is its own way.
        progress: Called with the number of rows done and the total.
    """
    # imported late: it takes a second, and most stages do not need it
    from lora_drop.evaluation.metrics.classification import constant_baseline, evaluate_predictions

    logits = predict(model, encoded, collate, batch_size, way, progress)
    if task.kind == "multilabel":
        return _several(task, rows, logits)
    predictions: list[float] = (logits.squeeze(-1) if task.kind == "regression" else logits.argmax(dim=-1)).tolist()
    groups = list(rows["group"]) if "group" in rows.column_names else None
    references = list(rows["label"])
    metrics = evaluate_predictions(task, predictions, references, groups)
    name: Callable[[Any], Any] = (lambda index: task.labels[int(index)]) if task.labels else task.number
    columns = zip(rows["id"], predictions, references, strict=True)
    return Evaluation(
        metrics,
        [{"id": row, "prediction": name(predicted), "reference": name(actual)} for row, predicted, actual in columns],
        {"baseline": constant_baseline(task, references, groups)},
    )


def predict(
    model: nn.Module,
    encoded: Dataset,
    collate: Collate,
    batch_size: int,
    way: Way | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Return the outputs of a classifier for tokenised rows, `rows outputs`, in their order.

    See `evaluate_classifier` for the arguments. With several processes, each computes a share of the batches.

    Raises:
        UserError: If an output is not finite: training has diverged. (The argmax of NaNs would be label 0.)
    """
    device = next(model.parameters()).device
    found: dict[int, torch.Tensor] = {}
    with eval_mode(model), torch.no_grad():
        for chosen, batch in batches(encoded, collate, batch_size, by_tokens=True, share=processes.mine):
            batch.pop("labels")
            given = {name: tensor.to(device) for name, tensor in batch.items()}
            with way.over(given) if way else nullcontext():
                logits = model(**given).logits.float().cpu()
            found |= zip(chosen, logits, strict=True)
            if progress:
                progress(min(processes.size() * len(found), len(encoded)), len(encoded))
    for others in processes.everywhere(found):
        found |= others
    logits = torch.stack([found[index] for index in range(len(encoded))])
    check_finite(logits.numpy())
    return logits


def chosen_labels(logits: torch.Tensor) -> torch.Tensor:
    """Return 1 for each label with a probability above one half, else 0 (`rows labels`)."""
    return (logits.sigmoid() > THRESHOLD).long()


def _several(task: Task, rows: Dataset, logits: torch.Tensor) -> Evaluation:
    """Evaluate predictions of several labels per row."""
    from lora_drop.evaluation.metrics.several import constant_several, evaluate_several

    predictions, references = chosen_labels(logits).tolist(), [list(map(int, row)) for row in rows["label"]]

    def names(row: list[int]) -> list[str]:
        return [name for name, on in zip(task.labels, row, strict=True) if on]

    columns = zip(rows["id"], predictions, references, strict=True)
    return Evaluation(
        evaluate_several(task.metrics, predictions, references),
        [{"id": row, "prediction": names(given), "reference": names(actual)} for row, given, actual in columns],
        {"baseline": constant_several(task.metrics, references)},
    )
