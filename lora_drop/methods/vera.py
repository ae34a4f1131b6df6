"""VeRA (Kopiczko et al. 2024, arXiv 2310.11454) by PEFT: ΔW = Λ_b B Λ_d A (their eq. 2).

A and B are random, frozen, and the same for all layers; each layer trains only the vectors d (rank) and b (output
width).
"""

from __future__ import annotations

from peft import VeraConfig
from torch import nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.methods import lora
from lora_drop.methods.base import Method
from lora_drop.pruning.places import find_places
from lora_drop.pruning.selection import Selection

RANK = 512  # LoRA-drop's Table 1: 0.03M parameters on RoBERTa-base


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Put the two vectors on every module of the target projections; `seed` decides the random matrices."""
    vera = VeraConfig(
        r=config.rank or RANK,
        vera_dropout=config.dropout,
        projection_prng_key=seed,
        save_projection=True,
        **lora.where(backbone, find_places(backbone, config.target_projections)),
    )
    return lora.wrap(backbone, vera, seed)


METHOD = Method(name="vera", title="VeRA", build=build, save=lora.save, load=lora.load)
