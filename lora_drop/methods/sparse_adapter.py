"""Sparse Adapter (He et al. 2022, arXiv 2210.04284): a LoRA pruned before training by SNIP (Lee et al. 2019).

Each weight θ is scored by |∂L/∂m| at m = 1, where m is a mask on it. That is |θ · ∂L/∂θ|, with the gradient summed over
320 training examples. The weights with the highest scores in the whole adapter are kept (`keep_ratio`); all others stay
0.

LoRA's own initial values make this degenerate: with B = 0, every score is 0, because ∂L/∂A = 0 and B = 0. So A and B
are drawn from N(0, 0.02), as the method's authors do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError
from lora_drop.methods import lora
from lora_drop.methods.base import Method, Parameters, count_parameters, head_parameters, trainable
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.criteria.base import Given
from lora_drop.pruning.criteria.passes import summed_gradients
from lora_drop.pruning.selection import Selection

DEVIATION = 0.02
EXAMPLES = 320
MASKS = "sparse_adapter.safetensors"


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Put a LoRA with A and B from N(0, 0.02) on the target projections, for `prune` to prune."""
    model: Any = lora.build(backbone, config, seed, selection)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in _adapter(model):
            parameter.normal_(0, DEVIATION)
    model.keep_ratio = config.keep_ratio
    return model


def prune(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Score the adapter's weights on the batches (with labels), keep the best, and fix the others at 0."""
    parameters = dict(_adapter(model))
    scores = snip_scores(model, parameters, batches)
    masks = keep_highest(scores, kept_weights(model))
    _apply(parameters, masks)


def snip_scores(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Float[Tensor, "rows columns"]]:
    """Return |θ · ∂L/∂θ| of each weight, with L the loss summed over all examples (learned tokens), without dropout."""
    sums = dict(summed_gradients(Given(model, loras(model), batches)).gradients)
    return {name: (each.detach() * sums[each]).abs() for name, each in parameters.items() if each in sums}


def keep_highest(
    scores: Mapping[str, Float[Tensor, "rows columns"]], count: int
) -> dict[str, Bool[Tensor, "rows columns"]]:
    """Return masks that keep exactly the `count` highest scores over all matrices; ties go to the first."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[torch.argsort(flat, descending=True, stable=True)[:count]] = True
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def kept_weights(model: Any) -> int:
    """Return the number of adapter weights that are kept."""
    return round(model.keep_ratio * sum(parameter.numel() for _, parameter in _adapter(model)))


def count(model: nn.Module) -> Parameters:
    """Count the kept weights, and the head separately."""
    return Parameters(kept_weights(model), count_parameters(model).head)


def save(model: nn.Module, folder: Path) -> None:
    """Write an ordinary PEFT adapter, with zeros for pruned weights, and the masks."""
    lora.save(model, folder)
    save_file({name: parameter.mask for name, parameter in _adapter(model)}, folder / MASKS)


def load(backbone: PreTrainedModel, folder: Path) -> PeftModel:
    """Read the adapter and its masks. Raise UserError if the folder is damaged."""
    model: Any = lora.load(backbone, folder)
    try:
        masks = load_file(folder / MASKS)
        _apply(dict(_adapter(model)), masks)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder / MASKS} is missing or damaged. It says which weights are pruned. Train the adapter again with "
            "--force."
        ) from error
    total = sum(mask.numel() for mask in masks.values())
    model.keep_ratio = sum(int(mask.sum()) for mask in masks.values()) / total
    return model


def _adapter(model: nn.Module) -> Iterable[tuple[str, Any]]:
    heads = head_parameters(model)
    return ((name, parameter) for name, parameter in trainable(model) if name not in heads)


def _apply(parameters: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
    """Set pruned weights to 0, and their gradients now and later, so that AdamW's moments and decay stay 0 as well."""
    for name, parameter in parameters.items():
        mask = masks[name].to(parameter.device)
        with torch.no_grad():
            parameter.mul_(mask)
        parameter.mask = mask
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


METHOD = Method(
    name="sparse_adapter",
    title="Sparse Adapter",
    build=build,
    save=save,
    load=load,
    prepare=prune,
    examples=EXAMPLES,
    count=count,
)
