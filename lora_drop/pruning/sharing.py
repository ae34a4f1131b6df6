"""Sharing (paper §3.2): retained layers keep their own LoRA, the low-importance layers of a projection share one.

Sharing ties modules: the layers point at the same `lora_A` and the same `lora_B`. They train as one pair, and PEFT
saves them as an ordinary adapter that holds a copy for each layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from peft import PeftModel
from torch import nn

from lora_drop.errors import UserError, counted, listed
from lora_drop.pruning.adapters import Lora, bare, loras, unscorable, unwrapped
from lora_drop.pruning.places import all_places
from lora_drop.pruning.selection import Selection


def share(model: PeftModel, selection: Selection) -> PeftModel:
    """Let the low-importance layers of each projection use the LoRA of the lowest of them, or remove theirs.

    They are removed if the selection's `share` is False.

    Args:
        model: a PEFT model with a LoRA on every module of the selection, of the rank that was scored. Its active
            adapter is changed in place; other adapters are left alone. Share before training or loading.
        selection: the selection returned by `lora_drop.select`.

    The LoRAs of the layers then have `selection.trainable_parameters` parameters. A LoRA outside the layers
    (`Scores.left_out`) stays as it is; a warning names it and says how many parameters it adds.

    Raises:
        UserError: if a layer of the selection has no LoRA, if a layer that was not scored has one, if the LoRAs have
            another rank than those that were scored, if layers that should share have different ranks, widths or
            scalings (`rank_pattern`, `alpha_pattern`), if layers already share that should not, or if the adapter cannot be shared (see
            `adapters.loras`). The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"share needs a PEFT model, but was given a {type(model).__name__}.")
    if not isinstance(selection, Selection):
        raise UserError(
            f"share needs the Selection that lora_drop.select returns, but was given a {type(selection).__name__}. Make one: "
            "lora_drop.select(scores, threshold=0.9)"
        )
    found = loras(model)
    names = _names(model, found)
    low = _low(model, found, names, selection)
    _check_scored(names, selection)
    _check_counted(found, names, selection)
    others = unscorable(model, set(names.values()))
    _arrange(model, found, low, selection)
    if others:
        warnings.warn(
            f"{listed(list(others))}: outside the layers of the selection, a LoRA stays as it is. The model trains "
            f"{sum(others.values()):,} parameters there, besides the {selection.trainable_parameters:,} of the selection.",
            stacklevel=2,
        )
    return model


def arrange(model: PeftModel, selection: Selection) -> PeftModel:
    """Do the same as `share`, whatever the selection has counted.

    For the command line, which compares the counts before it reads any weights, and makes up selections to count.
    """
    found = loras(model)
    _arrange(model, found, _low(model, found, _names(model, found), selection), selection)
    return model


def _names(model: PeftModel, found: Mapping[str, Lora]) -> dict[tuple[str, int], str]:
    """Return the modules in layers that have a LoRA, by projection and layer."""
    return {(place.projection, place.layer): place.name for place in all_places(model) if place.name in found}


def _low(
    model: PeftModel, found: Mapping[str, Lora], names: Mapping[tuple[str, int], str], selection: Selection
) -> list[list[str]]:
    """Return the low-importance modules of each projection. Raise UserError if they cannot be shared."""
    for projection, layers in selection.projections.items():
        missing = [layer for layer in layers.all if (projection, layer) not in names]
        if missing:
            raise UserError(
                f"The model has no {projection} LoRA in layer {missing[0]}, which the selection names. Use the model "
                "that was scored."
            )
    low = [[names[name, layer] for layer in layers.shared] for name, layers in selection.projections.items()]
    _check_ties(model, low if selection.share else [])
    for group in low if selection.share else []:
        _check_alike(found, group)
    return low


def _arrange(model: PeftModel, found: Mapping[str, Lora], low: Sequence[Sequence[str]], selection: Selection) -> None:
    for group in low:
        if selection.share:
            tie(found, group)
        else:
            remove(model, group)


def _check_scored(names: Mapping[tuple[str, int], str], selection: Selection) -> None:
    """Raise UserError if a layer that the selection does not know has a LoRA: it would be trained uncounted."""
    known = {(projection, layer) for projection, layers in selection.projections.items() for layer in layers.all}
    unknown = [name for place, name in names.items() if place not in known]
    if unknown:
        raise UserError(
            f"{counted(len(unknown), 'LoRA')} of the model would be trained besides the selection, which does not know "
            f"the layer or projection: {listed(unknown)}. Put LoRAs on the scored modules only (target_modules, "
            "layers_to_transform), or score a model that has them all."
        )


def _check_counted(found: Mapping[str, Lora], names: Mapping[tuple[str, int], str], selection: Selection) -> None:
    """Raise UserError if the LoRAs have other sizes than those that were scored: the selection has counted those."""
    owners = [
        found[names[projection, layer]]
        for projection, layers in selection.projections.items()
        for layer in (*layers.retained, *(layers.shared[:1] if selection.share else ()))
    ]
    total, expected = sum(owner.parameters for owner in owners), selection.trainable_parameters
    if total == expected:
        return
    ranks = sorted({owner.rank for owner in owners})
    there, rest = divmod(expected * ranks[0], total)
    if len(ranks) == 1 and there and not rest:
        raise UserError(
            f"The layers were scored by an adapter of rank {there}, whose {expected:,} parameters the selection has "
            f"counted, but the model's LoRAs have rank {ranks[0]}: {total:,} parameters. Use r={there} in its LoraConfig, "
            f"or score an adapter of rank {ranks[0]}."
        )
    raise UserError(
        f"The selection has counted {expected:,} parameters, but the model's LoRAs have {total:,} (rank "
        f"{', '.join(map(str, ranks))}): the layers were scored by an adapter of other sizes. Use the same r, "
        "rank_pattern and lora_bias in the model's LoraConfig, or score an adapter like the model's."
    )


def _check_ties(model: PeftModel, groups: Sequence[Sequence[str]]) -> None:
    """Raise UserError if layers outside these groups share a LoRA: ties are never undone."""
    for tied in ties(model):
        if not any(set(tied) <= set(group) for group in groups):
            raise UserError(
                f"{tied[0]} and {tied[1]} already share a LoRA under another selection. Start from a model whose "
                "layers each have their own LoRA, as get_peft_model returns it."
            )


def tie(found: Mapping[str, Lora], names: Sequence[str]) -> None:
    """Point the active LoRA of all these modules at the first one's `lora_A` and `lora_B`.

    `found` are the LoRAs of the model (`adapters.loras`). The modules are shared, not the weights: tied weights come
    apart silently when the model is cast or loaded by assignment.
    """
    _check_alike(found, names)
    for name in names[1:]:
        first, other = found[names[0]], found[name]
        other.layer.lora_A[other.adapter] = first.layer.lora_A[first.adapter]
        other.layer.lora_B[other.adapter] = first.layer.lora_B[first.adapter]


def _check_alike(found: Mapping[str, Lora], names: Sequence[str]) -> None:
    """Raise UserError unless one pair fits all these modules and gives each the same ΔW."""
    for name in names[1:]:
        first, other = found[names[0]], found[name]
        alike = {
            "ranks": first.rank == other.rank,
            "widths": first.down.shape == other.down.shape and first.up.shape == other.up.shape,
            "scalings (alpha / rank)": first.scaling == other.scaling,
        }
        for what, same in alike.items():
            if not same:
                raise UserError(
                    f"{names[0]} and {name} have different {what} and cannot share a LoRA. Select with share set to false for this model."
                )


def remove(model: PeftModel, names: Sequence[str]) -> None:
    """Remove the active LoRA from these modules, so that the adapter is saved for the others only."""
    found, inner = loras(model), unwrapped(model)
    configs = cast(dict[str, Any], inner.peft_config)
    for name in names:
        layer, config = found[name].layer, configs[found[name].adapter]
        _delete(layer, found[name].adapter)
        if not layer._all_available_adapter_names():
            bias = getattr(layer.base_layer, "bias", None)
            if config.bias == "lora_only" and bias is not None:  # it is trained and saved only beside a LoRA
                bias.requires_grad_(False)
            inner.get_base_model().set_submodule(name, layer.base_layer)
    for adapter in {found[name].adapter for name in names}:
        configs[adapter].target_modules = _adapted(model, adapter)


def _delete(layer: Any, adapter: str) -> None:
    """Delete the active adapter of a layer. By default PEFT would activate another one and make it trainable."""
    learnt = {parameter: parameter.requires_grad for parameter in layer.parameters()}
    layer.set_adapter([])
    layer.delete_adapter(adapter)
    layer.set_adapter(adapter)  # PEFT keeps the active name on every layer, even those without the adapter
    for parameter in layer.parameters():
        parameter.requires_grad_(learnt[parameter])


def _adapted(model: PeftModel, adapter: str) -> set[str]:
    """Return the modules on which an adapter has a LoRA, including embeddings and convolutions."""
    from peft.tuners.lora import LoraLayer

    layers = {bare(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name for name, layer in layers.items() if adapter in {*layer.lora_A, *layer.lora_embedding_A}}


def ties(model: PeftModel) -> list[list[str]]:
    """Return the groups of modules that share one LoRA, each group in model order."""
    groups: dict[int, list[str]] = {}
    for name, active in loras(model).items():
        groups.setdefault(id(active.layer.lora_A[active.adapter]), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
