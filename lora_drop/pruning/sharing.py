"""Sharing (paper §3.2): retained layers have a LoRA of their own, the low-importance layers of a projection share one.

Sharing is a tie of modules: the layers point at the same `lora_A` and the same `lora_B`. It trains as one pair, and
PEFT saves it as an ordinary adapter that holds a copy for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from peft import PeftModel

from lora_drop.errors import UserError
from lora_drop.pruning.adapters import Lora, bare, loras
from lora_drop.pruning.places import all_places
from lora_drop.pruning.selection import Selection


def share(model: PeftModel, selection: Selection) -> PeftModel:
    """Let the low-importance layers of each projection use the LoRA of the lowest of them; or none, if so selected.

    Args:
        model: a PEFT model with a LoRA on the modules that the selection speaks of; its active adapter is changed in
            place, any other stays as it is. Share before training or loading.
        selection: the outcome of `lora_drop.select`.

    Raises:
        UserError: if a layer of the selection has no LoRA, layers that are to share have different widths or scalings
            (`alpha_pattern`), layers share one already that should not, or the adapter is none that can be shared (see
            `adapters.loras`). The model is then as it was.
    """
    found = loras(model)
    names = {(place.projection, place.layer): place.name for place in all_places(model) if place.name in found}
    for projection, layers in selection.projections.items():
        missing = [layer for layer in layers.all if (projection, layer) not in names]
        if missing:
            raise UserError(
                f"The model has no {projection} LoRA in layer {missing[0]}, of which the selection speaks. Was it scored with this model?"
            )
    low = [[names[name, layer] for layer in layers.shared] for name, layers in selection.projections.items()]
    _check_ties(model, low if selection.share else [])
    for group in low if selection.share else []:
        _check_alike(found, group)
    for group in low:
        if selection.share:
            tie(model, group)
        else:
            remove(model, group)
    return model


def _check_ties(model: PeftModel, groups: Sequence[Sequence[str]]) -> None:
    """Raise UserError if layers share a LoRA that are not in one of these groups: a tie is not undone."""
    for tied in ties(model):
        if not any(set(tied) <= set(group) for group in groups):
            raise UserError(
                f"{tied[0]} and {tied[1]} share a LoRA already, by another selection. Share a model on which each layer has its own: "
                "get_peft_model gives one."
            )


def tie(model: PeftModel, names: Sequence[str]) -> None:
    """Point the active LoRA of all these modules at the first one's `lora_A` and `lora_B`.

    The modules are shared, not the weights: a tie of weights breaks silently when the model is cast or loaded by
    assignment.
    """
    found = loras(model)
    _check_alike(found, names)
    for name in names[1:]:
        first, other = found[names[0]], found[name]
        other.layer.lora_A[other.adapter] = first.layer.lora_A[first.adapter]
        other.layer.lora_B[other.adapter] = first.layer.lora_B[first.adapter]


def _check_alike(found: Mapping[str, Lora], names: Sequence[str]) -> None:
    """Raise UserError unless one pair fits all these modules, and is the same ΔW for each."""
    for name in names[1:]:
        first, other = found[names[0]], found[name]
        alike = {
            "widths": first.down.shape == other.down.shape and first.up.shape == other.up.shape,
            "scalings (alpha / rank)": first.scaling == other.scaling,
        }
        for what, same in alike.items():
            if not same:
                raise UserError(
                    f"{names[0]} and {name} have different {what} and cannot share a LoRA. Set method.share=false for this model."
                )


def remove(model: PeftModel, names: Sequence[str]) -> None:
    """Take the active LoRA away from these modules; what is saved is an adapter on the others."""
    found, configs = loras(model), cast(dict[str, Any], model.peft_config)
    for name in names:
        layer, config = found[name].layer, configs[found[name].adapter]
        _delete(layer, found[name].adapter)
        if not layer._all_available_adapter_names():
            bias = getattr(layer.base_layer, "bias", None)
            if config.bias == "lora_only" and bias is not None:  # which is trained and saved only beside a LoRA
                bias.requires_grad_(False)
            model.get_base_model().set_submodule(name, layer.base_layer)
    for adapter in {found[name].adapter for name in names}:
        configs[adapter].target_modules = _adapted(model, adapter)


def _delete(layer: Any, adapter: str) -> None:
    """Delete the active adapter of a layer. PEFT by itself activates another that is there, and makes it trainable."""
    learnt = {parameter: parameter.requires_grad for parameter in layer.parameters()}
    layer.set_adapter([])
    layer.delete_adapter(adapter)
    layer.set_adapter(adapter)  # as PEFT has it on every layer, also on those that this adapter is not on
    for parameter in layer.parameters():
        parameter.requires_grad_(learnt[parameter])


def _adapted(model: PeftModel, adapter: str) -> set[str]:
    """Return the modules that an adapter has a LoRA on, also embeddings and convolutions."""
    from peft.tuners.lora import LoraLayer

    layers = {bare(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name for name, layer in layers.items() if adapter in {*layer.lora_A, *layer.lora_embedding_A}}


def ties(model: PeftModel) -> list[list[str]]:
    """Return the groups of modules that use one LoRA, each group in model order."""
    groups: dict[int, list[str]] = {}
    for name, active in loras(model).items():
        groups.setdefault(id(active.layer.lora_A[active.adapter]), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
