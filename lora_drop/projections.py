"""Where the low-rank pairs go: finding query and value in any transformer, and reading a module's projection and layer from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from lora_drop.errors import UserError, closest

LEAVES = {
    "query": ("query", "q_lin", "q_proj", "query_proj", "q"),
    "key": ("key", "k_lin", "k_proj", "key_proj", "k"),
    "value": ("value", "v_lin", "v_proj", "value_proj", "v"),
}
"""The names that architectures give to the attention's projections: BERT and RoBERTa, DistilBERT, Llama and most others, DeBERTa-v2, T5."""

FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj")
"""Modules that hold query, key and value in one matrix."""

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Place:
    """One module that gets a low-rank pair: its full name, the projection it computes, and its layer from 0."""

    name: str
    projection: str
    layer: int


def projection_of(name: str) -> str:
    """Return "query", "key" or "value" for a module's full name, or its last part where it is none of these."""
    leaf = name.rsplit(".", 1)[-1]
    return next((projection for projection, leaves in LEAVES.items() if leaf in leaves), leaf)


def layer_of(name: str) -> int:
    """Return the layer of a module: the first number in its full name (`encoder.layer.3.attention.self.query` is 3).

    Raises UserError if the name has no number: only architectures with numbered blocks have layers to choose from.
    """
    number = _LAYER.search(f".{name}.")
    if number is None:
        raise UserError(
            f"The module {name} has no layer number in its name, so its layer is unknown. Choose projections inside the numbered blocks."
        )
    return int(number[1])


def find_places(model: nn.Module, projections: Sequence[str] = ("query", "value")) -> list[Place]:
    """Find the linear modules of the given projections in the numbered blocks, in model order.

    Args:
        model: a transformers model (before an adapter is put on it).
        projections: "query", "key", "value", or the last part of the names of linear modules ("dense", "gate_proj").

    PEFT's table of default targets says what query and value are called where it knows the architecture; else LEAVES does.

    Raises:
        UserError: if a projection is not there, is fused with others, or if two modules would be the same layer of it.
    """
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _LAYER.search(f".{name}.")
    ]
    leaves = {projection: _leaves(model, projection, linear) for projection in projections}
    wanted = {leaf for names in leaves.values() for leaf in names}
    places = [Place(name, projection_of(name), layer_of(name)) for name in linear if name.rsplit(".", 1)[-1] in wanted]
    _refuse_collisions(places)
    return places


def name_places(names: Iterable[str]) -> list[Place]:
    """Return the places of modules whose full names are known. Raises UserError if two are the same layer of one projection."""
    places = [Place(name, projection_of(name), layer_of(name)) for name in names]
    _refuse_collisions(places)
    return places


def _leaves(model: nn.Module, projection: str, linear: list[str]) -> set[str]:
    """Return what a projection is called in this model."""
    present = {name.rsplit(".", 1)[-1] for name in linear}
    if projection in LEAVES:
        found = present & (set(_peft_targets(model)) & set(LEAVES[projection]) or set(LEAVES[projection]))
    else:
        found = present & {projection}
    if not found:
        _refuse_missing(model, projection, present)
    return found


def _peft_targets(model: nn.Module) -> Sequence[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    model_type = getattr(getattr(model, "config", None), "model_type", "")
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    return () if isinstance(targets, str) else targets


def _refuse_missing(model: nn.Module, projection: str, present: set[str]) -> None:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    leaves = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    fused = next((name for name in FUSED if name in leaves), None)
    if fused and projection in LEAVES:
        raise UserError(
            f"{kind} computes query, key and value in one matrix ({fused}): a low-rank pair there moves all three at once, so there is no "
            f"{projection} LoRA to score or share. Choose a backbone with separate projections, or other modules with method.target_projections."
        )
    known = sorted(present | set(LEAVES))
    raise UserError(
        f"{kind} has no projection {projection!r}.{closest(projection, known)} Its linear modules: {', '.join(sorted(present)) or 'none'}"
    )


def _refuse_collisions(places: list[Place]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for place in places:
        other = seen.setdefault((place.projection, place.layer), place.name)
        if other != place.name:
            raise UserError(
                f"{other} and {place.name} would both be layer {place.layer} of projection {place.projection}. "
                "Choose projections that occur once per block with method.target_projections."
            )
