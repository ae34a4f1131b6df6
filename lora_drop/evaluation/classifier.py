"""Predictions of a classifier over encoded rows, and their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from lora_drop.encoding import Collate, batches
from lora_drop.evaluation.base import Evaluation
from lora_drop.tasks.base import Task


def evaluate_classifier(
    model: nn.Module,
    task: Task,
    rows: Dataset,
    encoded: Dataset,
    collate: Collate,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run the model over `encoded`, the tokenised `rows`; its mode is as before afterwards."""
    # not before: it takes a second, and most stages need none
    from lora_drop.evaluation.classification import constant_baseline, evaluate_predictions

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    predictions: list[float] = [0.0] * len(rows)
    done = 0
    with torch.no_grad():
        for chosen, batch in batches(encoded, collate, batch_size):
            batch.pop("labels")
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float().cpu()
            values = logits.squeeze(-1) if task.kind == "regression" else logits.argmax(dim=-1)
            for index, value in zip(chosen, values.tolist(), strict=True):
                predictions[index] = value
            done += len(chosen)
            if progress:
                progress(done, len(rows))
    model.train(training)
    groups = list(rows["group"]) if "group" in rows.column_names else None
    references = list(rows["label"])
    metrics = evaluate_predictions(task, predictions, references, groups)
    name: Callable[[Any], Any] = (lambda index: task.labels[int(index)]) if task.labels else float
    columns = zip(rows["id"], predictions, references, strict=True)
    return Evaluation(
        metrics,
        [{"id": row, "prediction": name(predicted), "reference": name(actual)} for row, predicted, actual in columns],
        {"baseline": constant_baseline(task, references, groups)},
    )
