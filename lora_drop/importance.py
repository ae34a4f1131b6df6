"""Stage 2: how strongly the output of each LoRA moves the frozen model (paper §3.1).

The score of LoRA i is g_i = mean over the sample of ‖B_i A_i x_i‖², summed over the tokens of an example (paper eq. 3). With
z = A x, which is r numbers a token, and the Gram matrix C = Σ z zᵀ (r × r) over all real tokens,

    Σ ‖B A x‖² = Σ zᵀ (Bᵀ B) z = ⟨C, Bᵀ B⟩.

So nothing of the model's width is ever kept, padding is left out exactly, and C adds up over batches, files and machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lora_drop.errors import UserError
from lora_drop.packing import Packing
from lora_drop.projections import Place, name_places
from lora_drop.selection import Scored, normalise


@dataclass
class Moments:
    """What a pass over the data leaves of it: sums, so that two passes over two halves add up to one over the whole."""

    gram: dict[str, Float[Tensor, "rank rank"]] = field(default_factory=dict)
    """C = Σ z zᵀ per module, float64, on the CPU."""
    examples: int = 0
    tokens: int = 0
    norms: dict[str, list[float]] | None = None
    """‖B A x‖² of each example per module, in the order of the data, if asked for."""

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both passes together."""
        gram = {name: self.gram[name] + other.gram[name] for name in self.gram} if self.gram else dict(other.gram)
        norms = None
        if self.norms is not None and other.norms is not None:
            norms = {name: self.norms.get(name, []) + other.norms[name] for name in other.norms}
        return Moments(gram, self.examples + other.examples, self.tokens + other.tokens, norms)


@dataclass(frozen=True)
class Scores:
    """The importance of every LoRA; `rows` in model order. `norms`: per module, ‖B A x‖² of each example, if asked for."""

    rows: tuple[Scored, ...]
    examples: int
    tokens: int
    norms: dict[str, list[float]] | None = None


def score(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    per_example: bool = False,
    progress: Callable[[int], None] | None = None,
    packing: Packing | None = None,
) -> Scores:
    """Score every LoRA of a PEFT model by the squared norm of its output on the data.

    Args:
        model: a PEFT model with LoRA, warmed up. Its mode, hooks and gradients are as before when this returns or raises.
        batches: keyword arguments of the model's forward: `input_ids` and `attention_mask` (`batch seq`), 1 at real tokens. Labels are
            not needed. A batch without `attention_mask` is taken to have no padding.
        per_example: also keep the norm of each example (for distributions and the bootstrap).
        progress: called with the number of examples seen, after each batch.
        packing: computes the batches without padding; None is the model's own way.

    Returns:
        Scores with g_i (not scaled by alpha/rank, which is the same for every LoRA of a model) and I_i = g_i / Σ g per projection.

    Raises:
        UserError: if the model has no LoRA, there is no data, or no LoRA was ever trained (all scores 0).
    """
    moments = collect_moments(model, batches, per_example=per_example, progress=progress, packing=packing)
    return score_moments(model, moments)


def collect_moments(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    per_example: bool = False,
    progress: Callable[[int], None] | None = None,
    packing: Packing | None = None,
) -> Moments:
    """Run the model over the data and return the Gram matrices of z = A x. One forward pass, no gradients; see `score`."""
    layers = lora_layers(model)
    metric = {name: output_metric(layer) for name, layer in layers.items()} if per_example else {}
    moments = Moments(norms={name: [] for name in layers} if per_example else None)
    sums: dict[str, Tensor] = {}
    pad: list[Callable[[Tensor], Tensor]] = []  # of the batch under way: z with zeros at padding

    def add(name: str, z: Tensor) -> None:
        real = pad[0](z)
        gram = token_gram(real).double()
        sums[name] = sums[name] + gram if name in sums else gram
        if moments.norms is not None:
            moments.norms[name] += example_norms(real, metric[name]).tolist()

    device = next(model.parameters()).device
    with _observed(model, layers, add), torch.no_grad():
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            with packing.over(inputs, whole=True) if packing else nullcontext() as layout:
                pad[:] = [layout.restore if layout else partial(_blank, mask)]
                model(**inputs)
            moments.examples += len(mask)
            moments.tokens += int(mask.sum())
            if progress:
                progress(moments.examples)
    moments.gram = {name: sums[name].cpu() for name in layers if name in sums}
    return moments


def score_moments(model: nn.Module, moments: Moments) -> Scores:
    """Turn Gram matrices into scores: g_i = ⟨C_i, B_iᵀ B_i⟩ / examples, normalised per projection."""
    if moments.examples == 0:
        raise UserError("There is nothing to score: the sample has no rows.")
    layers = lora_layers(model)
    places = {place.name: place for place in name_places(layers)}
    values = {
        name: float((moments.gram[name] * output_metric(layer).double().cpu()).sum()) / moments.examples
        for name, layer in layers.items()
    }
    shares = _importances(places.values(), values)
    rows = [
        Scored(name, place.projection, place.layer, values[name], shares[name], _pair_size(layers[name]))
        for name, place in places.items()
    ]
    return Scores(tuple(rows), moments.examples, moments.tokens, moments.norms)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's LoRA layers by their name in the model without PEFT's prefix. Raises UserError if there are none."""
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."
    layers = {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and module.lora_A
    }
    if not layers:
        raise UserError(
            "The model has no LoRA to score. Wrap it with peft.get_peft_model(model, LoraConfig(...)) and train it a little first."
        )
    return layers


def output_metric(layer: Any) -> Float[Tensor, "rank rank"]:
    """Return Bᵀ B of a LoRA layer's active adapter: ‖B z‖² = zᵀ (Bᵀ B) z."""
    (name,) = layer.active_adapters
    weight = layer.lora_B[name].weight.detach().float()
    return weight.T @ weight


def _blank(mask: Tensor, z: Tensor) -> Tensor:
    return z * mask.unsqueeze(-1).to(z.dtype)


def token_gram(z: Float[Tensor, "batch seq rank"]) -> Float[Tensor, "rank rank"]:
    """Return Σ z zᵀ over all tokens of all examples. Padding must be zero."""
    flat = z.flatten(0, 1).float()
    return flat.T @ flat


def example_norms(z: Float[Tensor, "batch seq rank"], metric: Float[Tensor, "rank rank"]) -> Float[Tensor, " batch"]:
    """Return Σ over tokens of zᵀ (Bᵀ B) z for each example, given `metric` = Bᵀ B. Padding must be zero."""
    z = z.float()
    return ((z @ metric) * z).sum(dim=(1, 2))


def _importances(places: Iterable[Place], values: Mapping[str, float]) -> dict[str, float]:
    by_projection: dict[str, dict[int, str]] = {}
    for place in places:
        by_projection.setdefault(place.projection, {})[place.layer] = place.name
    shares = {}
    for names in by_projection.values():
        for layer, share in normalise({layer: values[name] for layer, name in names.items()}).items():
            shares[names[layer]] = share
    return shares


def _pair_size(layer: Any) -> int:
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight.numel() + layer.lora_B[name].weight.numel()


@contextmanager
def _observed(model: nn.Module, layers: Mapping[str, Any], add: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `add(name, z)` with each LoRA's z = A x in eval mode; put mode and hooks back at the end, also after an exception."""
    modes = {module: module.training for module in model.modules()}
    handles = []

    def observe(name: str, layer: Any) -> Callable[..., None]:
        (adapter,) = layer.active_adapters
        down = layer.lora_A[adapter].weight
        return lambda _module, inputs: add(name, functional.linear(inputs[0].to(down.dtype), down))

    try:
        model.eval()
        handles += [layer.register_forward_pre_hook(observe(name, layer)) for name, layer in layers.items()]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
