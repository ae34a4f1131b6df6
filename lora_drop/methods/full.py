"""Full fine-tuning: every weight of the backbone is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods.base import Method
from lora_drop.pruning.selection import Selection


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Return the backbone with every parameter trainable."""
    return backbone.requires_grad_(True)


def save(model: nn.Module, folder: Path) -> None:
    """Write the whole model in transformers' format."""
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder)


def load(backbone: PreTrainedModel, folder: Path) -> nn.Module:
    """Read the weights that `save` wrote into the backbone."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model. Train it again with: lora-drop train --force")
    kind: Any = type(backbone)
    model = kind.from_pretrained(folder, config=backbone.config, use_safetensors=True, trust_remote_code=False)
    model.fresh_modules = getattr(backbone, "fresh_modules", [])  # modules trained as a head remain one
    return model


METHOD = Method(name="full", title="Full-FT", build=build, save=save, load=load, quantizes=False)
