"""`lora_drop.score`, which takes a criterion by name and shows a progress bar."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lora_drop.errors import UserError
from lora_drop.pruning import importance
from lora_drop.pruning.criteria.base import Criterion
from lora_drop.pruning.observation import a_batch
from lora_drop.pruning.scores import Scores
from lora_drop.registry import CRITERIA


def score(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    criterion: str | Criterion = "output",
    per_example: bool = False,
    progress: bool | Callable[[int], None] = True,
    seed: int = 0,
) -> Scores:
    """Score every active LoRA of a PEFT model.

    Args:
        model: a PEFT model with LoRA, warmed up. It is restored at the end, also after an error.
        batches: dicts of tensors as the model's forward takes them (`input_ids`, `attention_mask`, …), with `labels` if
            a decoder reads them, and for the criteria `gradient` and `fisher`. A DataLoader works.
        criterion: output (the paper's: ‖ΔW x‖²), output_relative, gradient, fisher, activation, weight, random, or one
            added by a plugin or an installed package; or a Criterion itself.
        per_example: True to also keep the value of each example, if the criterion is a mean over examples.
        progress: True to show a bar in a terminal or a notebook, or a function called with the number of examples seen.
        seed: seed of the criterion random.

    Returns:
        Scores: g_i and I_i = g_i / Σ g per projection. A warning names the LoRAs that are not scored (`left_out`).

    Raises:
        UserError: for an unknown criterion, and for a model or batches that cannot be scored; see
            `pruning.importance.score`.
    """
    from tqdm import tqdm

    if not isinstance(model, nn.Module) or not isinstance(batches, Iterable):
        raise UserError(
            f"score needs a PEFT model and an iterable of batches, but was given a {type(model).__name__} and a "
            f"{type(batches).__name__}."
        )
    chosen = criterion if isinstance(criterion, Criterion) else CRITERIA.get(criterion)
    told = progress if callable(progress) else None
    unless_seen = False if "ipykernel" in sys.modules else None  # None hides the bar unless this is a terminal
    hidden = bool(told) or not progress or unless_seen
    bar = tqdm(batches, desc=f"scoring by {chosen.name}", unit="batch", disable=hidden, leave=False)
    scores = importance.score(
        model, map(a_batch, bar), criterion=chosen, per_example=per_example, progress=told, seed=seed
    )
    if scores.notice:
        warnings.warn(scores.notice, stacklevel=2)
    return scores
