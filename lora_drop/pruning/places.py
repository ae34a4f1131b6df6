"""The places of the low-rank pairs: linear modules of any transformer, by projection and layer.

A place is one linear module inside a numbered block. Its layer is the first number in its name. Its projection is the
name that it has in every block: `encoder.layer.3.attention.self.query` is layer 3 of `query`. Modules outside the
blocks (embeddings, pooler, head) have no layer and are not places.

| projection | modules |
|---|---|
| `query`, `key`, `value` | the attention's projections, whatever the architecture calls them (LEAVES) |
| `qkv` | one matrix that computes all three (FUSED): GPT-2, GPT-NeoX, Falcon, Phi-3, ModernBERT |
| `attention.output.dense` | any other module: the end of its name, as long as needed to be unique in the block |
| `encoder.SelfAttention.query` | the stacks and attentions of an encoder-decoder are kept apart |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_drop.errors import UserError, closest
from lora_drop.pruning.adapters import bare

LEAVES = {
    "query": ("query", "q_lin", "q_proj", "query_proj", "q"),
    "key": ("key", "k_lin", "k_proj", "key_proj", "k"),
    "value": ("value", "v_lin", "v_proj", "value_proj", "v"),
}
"""Names of the attention's projections: BERT and RoBERTa, DistilBERT, Llama and most others, DeBERTa-v2, T5."""
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj", "qkv")
"""Names of a matrix that holds query, key and value, in a module named as an attention (its name contains "att")."""
ALL_LINEAR = "all-linear"
EXPERTS = "experts"

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Place:
    """One module that can get a low-rank pair: its full name, the projection it computes, and its layer from 0."""

    name: str
    projection: str
    layer: int


def find_places(model: nn.Module, projections: Sequence[str] = ("query", "value")) -> list[Place]:
    """Find the linear modules of the given projections in the numbered blocks, in model order.

    Args:
        model: a transformers model (before an adapter is put on it).
        projections: names from the table above; the last part of a module's name (`dense` for every module of that
            name) or several last parts (`output.dense`); or `all-linear`: every linear module of every block except
            experts.

    A model that has no separate query, key and value gets one pair on the matrix that holds all three, as the
    projection `qkv`.

    Raises:
        UserError: if the model lacks a projection.
    """
    places = all_places(model)
    if not places:
        raise UserError(
            f"{_kind(model)} has no linear modules in numbered blocks, so there are no layers to choose from."
        )
    chosen: dict[str, None] = {}
    for projection in projections:
        found = _matching(places, projection)
        if not found:
            _refuse_missing(model, projection, places)
        chosen |= dict.fromkeys(place.name for place in found)
    return [place for place in places if place.name in chosen]


def all_places(model: nn.Module) -> list[Place]:
    """Return every linear module of the numbered blocks in model order, under its name before PEFT wrapped it."""
    names = list(_linear_names(model))
    shapes = {name: _LAYER.search(name) for name in names}
    within = {name: (name[: found.start()], name[found.end() :]) for name, found in shapes.items() if found is not None}
    titles = _titles(dict.fromkeys(within.values()))
    return [Place(name, titles[within[name]], int(found[1])) for name, found in shapes.items() if found is not None]


def fused_notice(model: nn.Module, projections: Sequence[str]) -> str | None:
    """Return a notice if query, key or value is requested and the model computes all three in one matrix, else None."""
    places = all_places(model)
    asked = [name for name in projections if name in LEAVES]
    if not asked or any(_titled(place, name) for place in places for name in asked):
        return None
    leaf = next((place.name.rsplit(".", 1)[-1] for place in places if _titled(place, "qkv")), None)
    if leaf is None:  # no layers at all: `find_places` refuses the model
        return None
    return (
        f"{_kind(model)} computes query, key and value in one matrix ({leaf}): its LoRA moves all three at once, "
        "and is scored, retained and shared as one projection, qkv"
    )


def in_block(name: str) -> bool:
    """Return True for the name of a module or tensor inside a numbered block."""
    return _LAYER.search(name) is not None


def transposed(model: nn.Module, places: Iterable[Place]) -> bool:
    """Return True if the weights at these places are stored as `inputs outputs` (GPT-2's Conv1D)."""
    return any(isinstance(model.get_submodule(place.name), Conv1D) for place in places)


def widths(module: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear module."""
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return inputs, outputs
    return module.in_features, module.out_features


def _linear_names(model: nn.Module) -> Iterator[str]:
    """Yield the names of the linear modules, without the modules that PEFT added."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: str | None = None
    for full, module in model.named_modules():
        name = bare(full)
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside = f"{name}."
            yield name
        elif isinstance(module, (nn.Linear, Conv1D)):
            yield name


def _titles(paths: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name each (path to the blocks, path within a block): its projection, after the parts that make it unique."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        groups.setdefault(_projection(path), []).append(path)
    titles: dict[tuple[str, str], str] = {}
    for projection, group in groups.items():
        parts = {path: [*path[0].split("."), *path[1].split(".")[:-1]] for path in group}
        common = set.intersection(*(set(names) for names in parts.values()))
        told = {path: [part for part in names if part not in common] for path, names in parts.items()}
        bare = {path: [part for part in names if not part.isdigit()] for path, names in told.items()}
        if len({tuple(names) for names in bare.values()}) == len(group):
            told = bare
        titles |= {path: ".".join([*names, projection]) for path, names in told.items()}
    return titles


def _projection(path: tuple[str, str]) -> str:
    """Return query, key, value or qkv for a path, or else its last part."""
    *parents, leaf = path[1].split(".")
    if leaf in FUSED and any("att" in part.lower() for part in parents):
        return "qkv"
    return next((projection for projection, leaves in LEAVES.items() if leaf in leaves), leaf)


def _matching(places: Sequence[Place], asked: str) -> list[Place]:
    """Return the places that match a name: as a projection, as a path within the block, or as the end of either."""
    if asked == ALL_LINEAR:
        return [place for place in places if EXPERTS not in place.name.split(".")]
    exact = [place for place in places if asked in (place.projection, _within(place))]
    if exact:
        return exact
    ends = [place for place in places if _ends(place.projection, asked) or _ends(place.name, asked)]
    if ends or asked not in LEAVES:
        return ends
    return [place for place in places if _titled(place, "qkv")]


def _within(place: Place) -> str:
    found = _LAYER.search(place.name)
    assert found is not None
    return place.name[found.end() :]


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _titled(place: Place, projection: str) -> bool:
    """Return True if a place computes a projection, even in a model with several stacks or attentions."""
    return place.projection.rsplit(".", 1)[-1] == projection


def _refuse_missing(model: nn.Module, projection: str, places: Sequence[Place]) -> None:
    known = list(dict.fromkeys(place.projection for place in places))
    raise UserError(
        f"{_kind(model)} has no projection {projection!r}.{closest(projection, known)} "
        f"Its projections: {', '.join(known)}; {ALL_LINEAR} is all of them"
    )


def _kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
