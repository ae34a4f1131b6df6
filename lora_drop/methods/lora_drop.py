"""LoRA-drop (paper §3.2): retained layers have a LoRA of their own, the low-importance layers of a projection share one.

Sharing is a tie of modules: the layers point at the same `lora_A` and the same `lora_B`. It trains as one pair, and it is saved as an
ordinary PEFT adapter that holds a copy for each layer, which every user of PEFT can read; `lora_drop.json` beside it says what is tied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.adapters import loras
from lora_drop.config import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods import lora
from lora_drop.methods.base import Method
from lora_drop.projections import Place, all_places, find_places
from lora_drop.selection import Selection

TIES = "lora_drop.json"


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Put a fresh LoRA on the retained layers and, if they share, one pair on all others of a projection."""
    if selection is None:
        raise UserError("LoRA-drop needs a selection of layers: run the stages sample, score and select first.")
    places = find_places(backbone, config.target_projections)
    _check(selection, places)
    if not selection.share:  # the others never get one, so that the initial values of these are those of their seed
        places = [place for place in places if place.layer in selection.projections[place.projection].retained]
        return lora.add_lora(backbone, config, seed, places)
    return share(lora.add_lora(backbone, config, seed, places), selection)


def share(model: PeftModel, selection: Selection) -> PeftModel:
    """Let the low-importance layers of each projection use one LoRA, that of the lowest of them; or none, if the selection says so.

    Args:
        model: a PEFT model with a LoRA on the modules that the selection speaks of; its active adapter is changed in place, any other stays
            as it is. Share before training or loading.
        selection: the outcome of `lora_drop.select`.

    Raises:
        UserError: if a layer of the selection has no LoRA, layers that are to share have different widths, or the adapter is none that can
            be shared (see `adapters.loras`).
    """
    found = loras(model)
    names = {(place.projection, place.layer): place.name for place in all_places(model) if place.name in found}
    for projection, layers in selection.projections.items():
        missing = [layer for layer in (*layers.retained, *layers.shared) if (projection, layer) not in names]
        if missing:
            raise UserError(
                f"The model has no {projection} LoRA in layer {missing[0]}, of which the selection speaks. Was it scored with this model?"
            )
    for projection, layers in selection.projections.items():
        low = [names[projection, layer] for layer in layers.shared]
        if selection.share:
            tie(model, low)
        else:
            remove(model, low)
    return model


def tie(model: PeftModel, names: Sequence[str]) -> None:
    """Point the active LoRA of all these modules at the first one's `lora_A` and `lora_B`.

    The modules are shared, not the weights: a tie of weights breaks silently when the model is cast or loaded by assignment.
    """
    found = loras(model)
    for name in names[1:]:
        first, other = found[names[0]], found[name]
        if first.down.shape != other.down.shape or first.up.shape != other.up.shape:
            raise UserError(
                f"{names[0]} and {name} have different widths and cannot share a LoRA. Set method.share=false for this model."
            )
        other.layer.lora_A[other.adapter] = first.layer.lora_A[first.adapter]
        other.layer.lora_B[other.adapter] = first.layer.lora_B[first.adapter]


def remove(model: PeftModel, names: Sequence[str]) -> None:
    """Take the active LoRA away from these modules; what is saved is an adapter on the others."""
    found = loras(model)
    for name in names:
        found[name].layer.delete_adapter(found[name].adapter)
        if not found[name].layer._all_available_adapter_names():
            model.get_base_model().set_submodule(name, found[name].layer.base_layer)
    for adapter in {found[name].adapter for name in names}:
        left = [name for name, active in found.items() if active.adapter == adapter and name not in names]
        config: Any = model.peft_config[adapter]
        config.target_modules = set(left)


def ties(model: PeftModel) -> list[list[str]]:
    """Return the groups of modules that use one LoRA, each group in model order."""
    groups: dict[int, list[str]] = {}
    for name, active in loras(model).items():
        groups.setdefault(id(active.layer.lora_A[active.adapter]), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def save(model: nn.Module, folder: Path) -> None:
    """Write the PEFT adapter and what is tied."""
    assert isinstance(model, PeftModel)
    lora.save(model, folder)
    (folder / TIES).write_text(json.dumps({"version": 1, "tied": ties(model)}, indent=2) + "\n", encoding="utf-8")


def load(backbone: PreTrainedModel, folder: Path) -> PeftModel:
    """Build the adapter, tie it as it was, and fill it. Raises UserError if the file is damaged or contradicts the ties."""
    model = lora.wrap(backbone, lora.read_config(folder), seed=0)
    try:
        groups = json.loads((folder / TIES).read_text(encoding="utf-8"))["tied"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / TIES} is missing or damaged: it says which layers share a LoRA. Train it again with --force."
        ) from error
    known = loras(model)
    unknown = [name for group in groups for name in group if name not in known]
    if unknown:
        raise UserError(f"{folder / TIES} speaks of {unknown[0]}, which has no LoRA in {folder}.")
    for group in groups:
        tie(model, group)
    lora.fill(model, folder)
    _check_copies(load_peft_weights(str(folder), device="cpu"), groups, folder)
    return model


def _check_copies(weights: dict[str, Tensor], groups: list[list[str]], folder: Path) -> None:
    """The file holds a copy of the shared pair for each layer; if one was altered, nobody can say which is meant."""
    for first, *others in groups:
        for name in others:
            for half in ("lora_A", "lora_B"):
                one, two = (weights[f"base_model.model.{layer}.{half}.weight"] for layer in (first, name))
                if not torch.equal(one, two):
                    raise UserError(
                        f"In {folder} the {half} of {first} and {name} differ, though {TIES} says that they share one. Train it again."
                    )


def _check(selection: Selection, places: Iterable[Place]) -> None:
    """The selection must speak of exactly the modules that the model has."""
    chosen = {
        (name, layer) for name, layers in selection.projections.items() for layer in (*layers.retained, *layers.shared)
    }
    present = {(place.projection, place.layer) for place in places}
    if chosen != present:
        projection, layer = sorted(chosen ^ present)[0]
        raise UserError(
            f"The selection and the model differ ({projection}, layer {layer}, is in one of them only). Score and select again with this backbone."
        )


METHOD = Method(
    name="lora_drop", title="LoRA-drop", build=build, save=save, load=load, needs_selection=True, starts=True
)
