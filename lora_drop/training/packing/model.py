"""Where the layers of a transformers model are."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lora_drop.training.packing.layout import Unpackable


def pretrained(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model under an adapter. Raises Unpackable if it does not use transformers' attention interface."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(base, PreTrainedModel):
        raise Unpackable("it is not a model of transformers")
    backbone: Any = base.base_model
    if not (getattr(backbone, "_supports_attention_backend", False) and getattr(backbone, "_supports_sdpa", False)):
        raise Unpackable(f"{base.config.model_type} does not use transformers' attention interface")
    if base.config.is_encoder_decoder:
        raise Unpackable(f"{base.config.model_type} has two stacks of layers")
    return base


def find_stack(model: PreTrainedModel) -> tuple[nn.Module, bool]:
    """Return the module that runs the layers, and whether it also embeds the tokens."""
    backbone: Any = model.base_model
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise Unpackable("it has no list of layers")
    largest = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    stack = backbone.get_submodule(largest.rpartition(".")[0])
    names = inspect.signature(stack.forward).parameters
    if "input_ids" not in names and "hidden_states" not in names:
        raise Unpackable(f"its layers are run by {type(stack).__name__}, which takes no tokens")
    return stack, "input_ids" in names


def configs(model: nn.Module) -> list[PretrainedConfig]:
    """Return every configuration that a module of the model looks at."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found[id(config)] = config
    return list(found.values())
