"""LoRA-drop (paper §3.2) as a method: a LoRA on every layer, shared as the selection says (`pruning.sharing`).

It is saved as an ordinary PEFT adapter that any user of PEFT can read, with a copy of a shared pair for each layer;
`lora_drop.json` beside it lists the tied modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods import lora
from lora_drop.methods.base import Method
from lora_drop.methods.compact import TIES, is_compact, read_compact, tied_groups
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.places import Place, find_places
from lora_drop.pruning.selection import Selection
from lora_drop.pruning.sharing import arrange, tie, ties
from lora_drop.pruning.tensor_names import HALVES, tensor_name
from lora_drop.randomness import random_state_kept


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Put a fresh LoRA on each retained layer and, if the selection shares, one pair on the others of a projection."""
    if selection is None:
        raise UserError("LoRA-drop needs a selection of layers: run the stages sample, score and select first.")
    places = find_places(backbone, config.target_projections)
    _check(selection, places)
    if not selection.share:  # a LoRA on the others, even if removed again, would change these initial values
        places = [place for place in places if place.layer in selection.projections[place.projection].retained]
        return lora.add_lora(backbone, config, seed, places)
    return arrange(lora.add_lora(backbone, config, seed, places), selection)


def save(model: nn.Module, folder: Path) -> None:
    """Write the PEFT adapter and the list of tied modules."""
    assert isinstance(model, PeftModel)
    lora.save(model, folder)
    (folder / TIES).write_text(json.dumps({"version": 1, "tied": ties(model)}, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved LoRA-drop adapter on its backbone, tied as in training.

    Args:
        model: the plain pretrained model, with a head of the same size if it has one; it is changed in place.
        folder: `adapter/` of a run, or an export: PEFT's form with `lora_drop.json`, or the compact form.

    Raises:
        UserError: if the model already has an adapter (its layers would not be tied), or if the folder is damaged or
            does not fit.
    """
    if isinstance(model, PeftModel):
        raise UserError(
            "The model already has an adapter, whose layers share nothing. Give the plain pretrained model: "
            "load_adapter adds the adapter and ties the layers that share."
        )
    training = model.training
    with random_state_kept():
        return load(model, Path(folder)).train(training)  # PEFT's dropout begins in train mode


def load(backbone: PreTrainedModel, folder: Path) -> PeftModel:
    """Build the adapter, restore its ties, and load its weights. Raise UserError if a file is damaged or missing."""
    if is_compact(folder):
        config, groups, weights = read_compact(folder)
        model = lora.wrapped(backbone, folder, config)
        _tie_all(model, groups, folder)
        lora.fill(model, folder, weights)
        return model
    model = lora.wrapped(backbone, folder)
    try:
        groups = tied_groups(json.loads((folder / TIES).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} has no {TIES}, which says what layers share: it was saved by PEFT, not by lora-drop. Load it "
            "with PEFT, and share again according to the selection: PeftModel.from_pretrained(model, folder, "
            "is_trainable=True), then lora_drop.share."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / TIES} is damaged. It says which layers share a LoRA. Train the adapter again with --force."
        ) from error
    _tie_all(model, groups, folder)
    _check_copies(lora.fill(model, folder), groups, folder)
    return model


def _tie_all(model: PeftModel, groups: list[list[str]], folder: Path) -> None:
    known = loras(model)
    unknown = [name for group in groups for name in group if name not in known]
    if unknown:
        raise UserError(f"{folder / TIES} names {unknown[0]}, which has no LoRA in {folder}.")
    for group in groups:
        tie(known, group)


def _check_copies(weights: dict[str, Tensor], groups: list[list[str]], folder: Path) -> None:
    """Raise UserError if the copies of a shared pair differ: there is no way to tell which one is right."""
    for first, *others in groups:
        for name in others:
            for half in HALVES:
                one, two = (weights[tensor_name(layer, half)] for layer in (first, name))
                if not torch.equal(one, two):
                    raise UserError(
                        f"In {folder} the {half} of {first} and {name} differ, though {TIES} says that they share one. Train it again."
                    )


def _check(selection: Selection, places: Iterable[Place]) -> None:
    """Raise UserError unless the selection covers exactly these places of the model."""
    chosen = {(name, layer) for name, layers in selection.projections.items() for layer in layers.all}
    present = {(place.projection, place.layer) for place in places}
    if chosen != present:
        projection, layer = sorted(chosen ^ present)[0]
        raise UserError(
            f"The selection and the model differ ({projection}, layer {layer}, is in one of them only). Set method.target_projections to "
            f"those that were scored ({', '.join(selection.projections)}), or score and select again with this backbone and these modules."
        )


METHOD = Method(
    name="lora_drop", title="LoRA-drop", build=build, save=save, load=load, needs_selection=True, starts=True
)
