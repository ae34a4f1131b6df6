"""The warm-up of stage 2: where it differs from the final training, and what its losses say of it."""

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
"""Fewer optimizer steps than this leave importances that depend more on the seed than on the task (docs/experiments.md has the measurement)."""

LEARNT = 0.99
"""A mean loss over the last quarter of the steps that is at least this share of a constant prediction's is one, too."""


def warmup_settings(config: Config) -> TrainConfig:
    """Return the settings of the warm-up: those of the final training, but for what `warmup` says of it.

    Its learning rate does not rise: Hu et al.'s schedule starts at 0, and in a warm-up of a few steps the steps of the rise, the first of which
    changes nothing, would be a large part of all.
    """
    warmup, train = config.warmup, config.train
    return replace(
        train,
        epochs=warmup.epochs,
        batch_size=warmup.batch_size or train.batch_size,
        learning_rate=warmup.learning_rate or train.learning_rate,
        warmup_ratio=0.0,
        warmup_steps=None,
    )


def first_and_last(losses: Sequence[float]) -> tuple[float, float]:
    """Return the mean loss of the first and of the last quarter of the steps; single losses are too noisy to compare."""
    quarter = max(1, len(losses) // 4)
    return fmean(losses[:quarter]), fmean(losses[-quarter:])


def constant_loss(labels: Sequence[Any], task: Task, smoothing: float) -> float | None:
    """Return the lowest loss of a prediction that never looks at its input, on rows with these labels; None for texts."""
    import numpy as np  # not before: what a run says of itself is read without them
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
    """Return what speaks against trusting importances that were scored after these steps.

    Args:
        losses: of each step.
        constant: the loss of a constant prediction on the same rows.
    """
    first, last = first_and_last(losses)
    found = []
    if len(losses) < FEW_STEPS:
        found.append(
            f"the warm-up has only {counted(len(losses), 'optimizer step')}, and after fewer than {FEW_STEPS} the importances say "
            "little of the task. Lower warmup.batch_size, or raise warmup.epochs or sample.ratio"
        )
    if constant is not None and last >= LEARNT * constant:
        found.append(
            f"the loss of the warm-up ended at {last:.3f}, and a prediction that never looks at its input has {constant:.3f}: it "
            "has learnt nothing that the importances could tell of. Raise warmup.epochs, or change warmup.learning_rate or "
            "warmup.batch_size"
        )
    elif last >= first:
        found.append(
            f"the loss of the warm-up did not fall ({first:.3f} in its first quarter, {last:.3f} in its last): it has learnt nothing that the "
            "importances could tell of. Raise warmup.epochs or warmup.learning_rate, or lower warmup.batch_size"
        )
    return found
