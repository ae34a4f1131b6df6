"""The output of a LoRA relative to the output of the frozen matrix it adapts.

    g = mean over examples of (Σ over tokens of ‖ΔW x‖²) / (Σ over tokens of ‖W x‖²),    ΔW = scaling · B A

The paper's score grows with the scale of a layer's inputs, which differs between layers; this quotient does not. It
ignores the bias of W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drop.pruning.criteria.base import Criterion, Given, Measured

if TYPE_CHECKING:
    from torch import Tensor

    from lora_drop.pruning.adapters import Lora


TINY = 1e-300
"""Keeps the quotient of an all-padding example, 0 / 0, at 0."""


def measure(given: Given) -> Measured:
    """Return g of each LoRA."""
    from lora_drop.pruning.criteria.passes import sums_of_examples

    return sums_of_examples(given, squares, lambda sums: sums[:, 0] / sums[:, 1].clamp(min=TINY))


def squares(lora: Lora, x: Tensor) -> Tensor:
    """Return ‖ΔW x‖² and ‖W x‖² of each token (`*batch 2`)."""
    import torch

    from lora_drop.pruning.adapters import product

    z, base = lora.project(x).float(), lora.layer.base_layer
    if lora.merges:  # calling it runs the whole attention, but W is only its three input projections
        frozen = torch.nn.functional.linear(x, base.in_proj_weight).float()
    else:
        frozen = base(x).float()
        if base.bias is not None:
            frozen = frozen - base.bias.float()
    return torch.stack([(product(z, lora.metric) * z).sum(-1), frozen.square().sum(-1)], dim=-1)


CRITERION = Criterion("output_relative", "relative output ‖ΔWx‖²/‖Wx‖²", measure, additive=True)
