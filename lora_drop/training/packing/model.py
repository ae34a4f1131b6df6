"""Find the stack of layers of a transformers model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lora_drop.training.packing.layout import Unpackable


@dataclass(frozen=True)
class Stack:
    """The part of a model that is computed without padding."""

    module: nn.Module
    """Runs the layers."""
    layers: nn.ModuleList
    embeds: bool
    """True if it also embeds the tokens."""


def pretrained(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model under an adapter. Raises Unpackable if there is none, or if it has two stacks."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(base, PreTrainedModel):
        raise Unpackable("it is not a model of transformers")
    if base.config.is_encoder_decoder:
        raise Unpackable(f"{base.config.model_type} has two stacks of layers")
    return base


def uses_interface(model: PreTrainedModel) -> bool:
    """Return True if the model's attention can be replaced through transformers' attention interface."""
    backbone: Any = model.base_model
    return bool(getattr(backbone, "_supports_attention_backend", False))


def find_stack(model: PreTrainedModel) -> Stack:
    """Return the module that runs the layers. Raises Unpackable if there is none."""
    backbone: Any = model.base_model
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise Unpackable("it has no list of layers")
    largest = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    stack: nn.Module = backbone.get_submodule(largest.rpartition(".")[0])
    names = inspect.signature(stack.forward).parameters
    if "input_ids" not in names and "hidden_states" not in names:
        raise Unpackable(f"its layers are run by {type(stack).__name__}, which takes no tokens")
    return Stack(stack, lists[largest], "input_ids" in names)


def configs(model: nn.Module) -> list[PretrainedConfig]:
    """Return the configurations of all modules of the model, each once."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found[id(config)] = config
    return list(found.values())
