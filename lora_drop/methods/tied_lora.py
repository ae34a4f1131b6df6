"""Tied-LoRA (Renduchintala et al. 2023, arXiv 2311.09578), the variant that trains everything: ΔW = Λ_v B Λ_u A.

A and B are tied across all layers; each layer has its own vectors u (rank) and v (output width). As in their paper, the
projections of a layer form one fused matrix: for query and value, A is (rank × width) and B is (width of query + width
of value) × rank. At rank 56, this gives the 0.15M of LoRA-drop's Table 1. A and B start as in LoRA (Kaiming and zero),
and u and v at one, so that ΔW starts at zero.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.faults import foreign
from lora_drop.methods.base import Method, heads, trainable
from lora_drop.pruning.places import Place, find_places, widths
from lora_drop.pruning.selection import Selection

RANK = 56
WEIGHTS, SETTINGS = "tied_lora.safetensors", "tied_lora.json"


class Tied(nn.Module):
    """The pair that all layers share."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


class Vectors(nn.Module):
    """The vectors of one layer."""

    def __init__(self, outputs: int, rank: int):
        super().__init__()
        self.u = nn.Parameter(torch.ones(rank))
        self.v = nn.Parameter(torch.ones(outputs))


class TiedLinear(nn.Module):
    """A frozen linear module plus its rows of the fused update: W x + scaling · v ∘ B (u ∘ A x).

    The frozen module has the same attribute name as in PEFT, by which `packing.own_attention` recognises an adapter.
    """

    def __init__(self, base: nn.Module, tied: Tied, vectors: Vectors, first_row: int, scaling: float, dropout: float):
        super().__init__()
        self.base_layer, self.tied, self.vectors = base, tied, vectors
        self.rows = slice(first_row, first_row + widths(base)[1])
        self.scaling, self.dropout = scaling, nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return the adapted projection of `x`."""
        z = functional.linear(self.dropout(x), self.tied.A) * self.vectors.u
        update = functional.linear(z, self.tied.B[self.rows]) * self.vectors.v[self.rows]
        return self.base_layer(x) + self.scaling * update


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Replace every target module by a TiedLinear. Raise UserError if layers, or inputs within one, differ in width."""
    rank = config.rank or RANK
    scaling = (config.alpha or 2 * rank) / rank
    return _build(backbone, seed, rank, scaling, config.dropout, list(config.target_projections))


def _build(
    backbone: Any, seed: int, rank: int, scaling: float, dropout: float, target_projections: list[str]
) -> nn.Module:
    layers: dict[int, list[Place]] = {}
    for place in find_places(backbone, target_projections):
        layers.setdefault(place.layer, []).append(place)
    linears: dict[int, list[Any]] = {
        layer: [backbone.get_submodule(place.name) for place in places] for layer, places in layers.items()
    }
    sizes = {tuple(map(widths, group)) for group in linears.values()}
    if len(sizes) > 1 or len({inputs for inputs, _ in next(iter(sizes))}) > 1:
        raise UserError(
            "Tied-LoRA needs layers of equal widths, and this model's differ. Choose other method.target_projections."
        )
    outputs = sum(width for _, width in next(iter(sizes)))
    backbone.requires_grad_(False)
    for name in heads(backbone):
        backbone.get_submodule(name).requires_grad_(True)
    torch.manual_seed(seed)
    device = next(backbone.parameters()).device
    with device:
        tied = Tied(next(iter(sizes))[0][0], outputs, rank)
        for layer, places in layers.items():
            vectors, row = Vectors(outputs, rank), 0
            for place, linear in zip(places, linears[layer], strict=True):
                backbone.set_submodule(place.name, TiedLinear(linear, tied, vectors, row, scaling, dropout))
                row += widths(linear)[1]
    backbone.tied_lora = {
        "rank": rank,
        "scaling": scaling,
        "dropout": dropout,
        "target_projections": target_projections,
    }
    return backbone


def save(model: nn.Module, folder: Path) -> None:
    """Write the trained tensors, each once, and the settings needed to rebuild the model."""
    save_file({name: tensor.detach().contiguous() for name, tensor in trainable(model)}, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(model.tied_lora, indent=2) + "\n", encoding="utf-8")


def load(backbone: PreTrainedModel, folder: Path) -> nn.Module:
    """Rebuild the saved model and load its tensors. Raise UserError if the folder is damaged or for another model."""
    with foreign(f"{folder} holds no readable Tied-LoRA; train it again with --force"):
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        model = _build(backbone, seed=0, **settings)
        stored = load_file(folder / WEIGHTS)
    expected = {name: tuple(tensor.shape) for name, tensor in trainable(model)}
    if expected != {name: tuple(tensor.shape) for name, tensor in stored.items()}:
        raise UserError(f"{folder} holds a Tied-LoRA for another model.")
    with torch.no_grad():
        for name, parameter in trainable(model):
            parameter.copy_(stored[name])
    return model


METHOD = Method(name="tied_lora", title="Tied-LoRA", build=build, save=save, load=load, merges=False, quantizes=False)
