"""The uncertainty of the importances: a bootstrap over the examples of the sample.

The scored sample is one of many that could have been drawn. Resampling it many times, with replacement, shows how much
each importance would change with other rows, and how often each layer would have been retained. The warm-up is not
repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_drop.errors import UserError
from lora_drop.pruning.scores import Scored, rescored
from lora_drop.pruning.selection import select

CONFIDENCE = 0.95
CHUNK = 100


def bootstrap(
    scored: Sequence[Scored],
    norms: Mapping[str, Sequence[float]],
    resamples: int,
    *,
    threshold: float = 0.9,
    budget: float | None = None,
    policy: str = "threshold",
    share: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Resample the examples and select layers anew each time.

    Args:
        scored: every LoRA, as in `scores.json`.
        norms: by module name, ‖ΔW x‖² of each example; all lists in the same order.
        resamples: number of resamples; each draws as many examples as there are, with replacement.
        threshold: T at which layers are retained.
        budget: instead of T, as in `select`.
        policy: rule that retains layers, as in `select`.
        share: True if a budget counts shared pairs, as in `select`.
        seed: seed of the draws, and of the policy "random".

    Returns:
        Per LoRA `projection`, `layer`, `importance` (of the sample itself), `low` and `high` (the 95 % percentile
        interval), and `retained`, the share of the resamples in which the layer kept its own LoRA.

    Raises:
        UserError: if there are fewer than two examples or no resamples.
    """
    values = np.array([norms[row.name] for row in scored])  # module example
    examples = values.shape[1]
    if examples < 2 or resamples < 1:
        raise UserError(
            f"Cannot resample {examples} examples {resamples} times: at least 2 examples and 1 resample are needed."
        )
    means = _resampled_means(values, resamples, seed)
    importances = np.empty_like(means)
    retained = np.zeros(len(scored))
    for number, scores in enumerate(means):
        rows = rescored(scored, scores.tolist())
        importances[number] = [row.importance for row in rows]
        chosen = select(rows, threshold if budget is None else None, budget, policy, share, seed).projections
        retained += [row.layer in chosen[row.projection].retained for row in rows]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(importances, [tail, 100 - tail], axis=0)
    return [
        {
            "projection": row.projection,
            "layer": row.layer,
            "importance": row.importance,
            "low": float(low[index]),
            "high": float(high[index]),
            "retained": float(retained[index] / resamples),
        }
        for index, row in enumerate(scored)
    ]


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the means (`resample module`) of `values` (`module example`) over resamples, CHUNK draws at a time."""
    examples = values.shape[1]
    generator, share = np.random.default_rng(seed), np.full(examples, 1 / examples)
    sizes = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    return np.concatenate([generator.multinomial(examples, share, size=size) @ values.T / examples for size in sizes])
