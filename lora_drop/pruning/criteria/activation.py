"""The share of the inputs' variance that r directions explain, by which EVA ranks layers (Paischer et al. 2024, arXiv
2410.07170).

    g = (λ₁ + … + λᵣ) / (λ₁ + … + λ_d),    λ = eigenvalues of the covariance of x over all real tokens, descending

EVA gives rank to the layers whose components explain most of their inputs. Only the rank r of the LoRA enters, not its
weights: query and value of a layer read the same x and so have the same score. A `d d` matrix per LoRA is kept in
float64 while scoring.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_drop.pruning.criteria.base import Criterion, Given, Measured

if TYPE_CHECKING:
    from torch import Tensor

    from lora_drop.pruning.adapters import Lora


def measure(given: Given) -> Measured:
    """Return g of each LoRA."""
    from lora_drop.pruning.importance import collect_moments

    moments = collect_moments(replace(given, per_example=False), with_constant)
    values = {name: explained(gram, given.layers[name].rank) for name, gram in moments.gram.items()}
    return Measured(values, moments.examples, moments.tokens)


def with_constant(lora: Lora, x: Tensor) -> Tensor:
    """Return x with a constant 1 appended, so that its Gram matrix also holds Σ x and the number of tokens."""
    import torch

    return torch.cat([x.float(), torch.ones_like(x[..., :1], dtype=torch.float32)], dim=-1)


def explained(gram: Tensor, rank: int) -> float:
    """Return the share of the variance that the first `rank` principal components explain.

    Args:
        gram: Σ over tokens of [x, 1][x, 1]ᵀ, `width+1 width+1`.
        rank: number of components.
    """
    import torch

    count = gram[-1, -1]
    mean = gram[-1, :-1] / count
    covariance = gram[:-1, :-1] / count - torch.outer(mean, mean)
    variances = torch.linalg.eigvalsh(covariance).clamp(min=0)  # ascending
    return float(variances[-rank:].sum() / variances.sum())


CRITERION = Criterion("activation", "explained variance of x", measure)
