"""The size of the update itself, without data: a feature of the parameters, which the paper (§1) argues against.

    g = ‖ΔW‖_F,    ΔW = scaling · B A

In rank space, ‖ΔW‖_F² = scaling² · ⟨BᵀB, A Aᵀ⟩. A bias of B is not part of ΔW.
"""

from lora_drop.pruning.criteria.base import Criterion, Given, Measured


def measure(given: Given) -> Measured:
    """Return g of each LoRA."""
    values = {}
    for name, lora in given.layers.items():
        down = lora.down.detach().double().cpu()
        up = lora.up.double().cpu()[:, : len(down)]
        square = float(((up.T @ up) * (down @ down.T)).sum())
        values[name] = lora.scaling * max(square, 0.0) ** 0.5
    return Measured(values)


CRITERION = Criterion("weight", "weights ‖ΔW‖", measure, reads=False)
