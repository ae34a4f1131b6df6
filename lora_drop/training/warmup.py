"""The warm-up of stage 2: how it differs from the final training, and warnings derived from its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lora_drop.config.schema import Config, TrainConfig
from lora_drop.errors import counted

if TYPE_CHECKING:
    from lora_drop.tasks.base import Task

FEW_STEPS = 30
"""With fewer optimizer steps, importances depend more on the seed than on the task (see docs/experiments.md)."""

LEARNT = 0.99
"""If the mean loss of its last quarter is at least this share of a constant prediction's, a warm-up learnt nothing."""


def warmup_settings(config: Config) -> TrainConfig:
    """Return the settings of the warm-up: those of the final training, except where `warmup` overrides them.

    Its learning rate does not ramp up. Hu et al.'s schedule starts at 0, so its first step changes nothing, and the
    ramp would take a large part of a warm-up of a few steps. The loss of each step is recorded, as `doubts` reads them;
    on a GPU this waits for each step to end.
    """
    warmup, train = config.warmup, config.train
    return replace(
        train,
        epochs=warmup.epochs,
        batch_size=warmup.batch_size or train.batch_size,
        learning_rate=warmup.learning_rate or train.learning_rate,
        warmup_ratio=0.0,
        warmup_steps=None,
        logging_steps=1,
    )


def first_and_last(losses: Sequence[float]) -> tuple[float, float]:
    """Return the mean losses of the first and the last quarter of the steps; single losses are too noisy to compare."""
    quarter = max(1, len(losses) // 4)
    return fmean(losses[:quarter]), fmean(losses[-quarter:])


def constant_loss(labels: Sequence[Any], task: Task, smoothing: float) -> float | None:
    """Return the lowest loss of a constant prediction on rows with these labels; None for text generation."""
    import numpy as np  # imported late: reports of a run are read without numpy and scipy
    from scipy.stats import entropy

    if task.kind == "generation":
        return None
    known = np.asarray(labels, dtype=float)
    if task.kind == "regression":
        return float(known.var())
    if task.kind == "multilabel":
        shares = known.mean(axis=0)
        return float(np.mean(entropy(np.stack([shares, 1 - shares]))))
    shares = np.bincount(known.astype(int), minlength=task.outputs) / len(known)
    return float(entropy((1 - smoothing) * shares + smoothing / task.outputs))


def doubts(losses: Sequence[float], constant: float | None = None) -> list[str]:
    """Return reasons not to trust importances that were scored after these steps.

    Args:
        losses: The loss of each step.
        constant: The loss of a constant prediction on the same rows.
    """
    first, last = first_and_last(losses)
    found = []
    if len(losses) < FEW_STEPS:
        found.append(
            f"the warm-up has only {counted(len(losses), 'optimizer step')}, and after fewer than {FEW_STEPS} the "
            "importances say little about the task. Lower warmup.batch_size, or raise warmup.epochs or sample.ratio"
        )
    if constant is not None and last >= LEARNT * constant:
        found.append(
            f"the loss of the warm-up ended at {last:.3f}, while a prediction that never looks at its input has "
            f"{constant:.3f}: the warm-up has learnt nothing that the importances could show. Raise warmup.epochs, or "
            "change warmup.learning_rate or warmup.batch_size"
        )
    elif last >= first:
        found.append(
            f"the loss of the warm-up did not fall ({first:.3f} in its first quarter, {last:.3f} in its last): the "
            "warm-up has learnt nothing that the importances could show. Raise warmup.epochs or "
            "warmup.learning_rate, or lower warmup.batch_size"
        )
    return found
