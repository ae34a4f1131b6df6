"""Start training from an existing adapter, as Hu et al. (2021) start RTE, MRPC and STS-B from MNLI."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from torch import Tensor, nn

from lora_drop.errors import UserError, first_line
from lora_drop.methods.base import HEADS, Method, head_parameters, heads
from lora_drop.methods.folder import adapter_folder
from lora_drop.methods.lora import read_config, read_weights
from lora_drop.pruning.adapters import KEEPS_W, Lora, loras
from lora_drop.pruning.tensor_names import HALVES, PREFIX, tensor_name

VARIANTS = (
    *("rank_pattern", "alpha_pattern", "layer_replication", "use_dora", "use_qalora", "use_bdlora", "velora_config"),
    *("alora_invocation_tokens", "monteclora_config", "arrow_config", "kasa_config", "target_parameters"),
)
"""Keys of PEFT's configuration that make a LoRA another function of x than one scaling · B A."""


def check_start(method: Method, path: str) -> None:
    """Raise UserError unless the method can start from the adapter at `path`."""
    if not method.starts:
        raise UserError(f"train.start_from is for lora and lora_drop, but the method is {method.name}. Leave it empty.")
    config = read_config(adapter_folder(path))
    variant = next((f" ({key})" for key in VARIANTS if getattr(config, key, None)), "")
    if not isinstance(config, LoraConfig) or variant:
        raise UserError(
            f"train.start_from={path} is not a plain LoRA of one rank and one scaling{variant}, which is all that "
            "training can start from."
        )
    learnt = {
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "trainable_token_indices": bool(config.trainable_token_indices),
    }
    beside = [f"{key}={getattr(config, key)!r}" for key, there in learnt.items() if there]
    if beside:
        raise UserError(
            f"train.start_from={path} was trained with {' and '.join(beside)}: training starts from A and B only, and "
            "everything else that was learnt would be lost. Name an adapter without it."
        )
    _refuse_moved("train.start_from", path, config)


def check_adapter(path: str, kind: str) -> None:
    """Raise UserError unless the adapter at `path` is a LoRA for this kind of task."""
    config = read_config(adapter_folder(path, "warmup.adapter"))
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"warmup.adapter={path} is {config.peft_type}. Layers are scored by their LoRA: name a LoRA's folder."
        )
    _refuse_moved("warmup.adapter", path, config)
    wanted = "CAUSAL_LM" if kind == "generation" else "SEQ_CLS"
    if config.task_type not in (None, wanted):
        raise UserError(
            f"warmup.adapter={path} was trained as {config.task_type}, but this task needs {wanted}. Choose a task of "
            "that kind, or another adapter."
        )


def _refuse_moved(key: str, path: str, config: LoraConfig) -> None:
    """Raise UserError for an adapter that holds a part of W."""
    if config.init_lora_weights not in KEEPS_W:
        raise UserError(
            f"{key}={path} was initialised with {config.init_lora_weights!r}, which moves a part of W into B A: "
            "without the W that it was taken from, it is meaningless. Name an adapter with init_lora_weights=true."
        )


def start_from(model: nn.Module, folder: Path) -> str:
    """Copy a trained adapter into a fresh one where both have a LoRA on the same module, and return a summary.

    The pair of layers that share is copied only if they shared it in the trained adapter: the pair of one layer does
    not fit the others. The head is copied if it has the size of this task's head. LoRAs on other modules are left out
    and counted in the summary.

    Raises:
        UserError: if the file cannot be read, if widths, ranks or scalings differ, if no LoRA of the file is on a
            module that has one in this model, or if the file holds whole modules other than the head.
    """
    try:
        weights = read_weights(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable adapter: {first_line(error)}") from error
    _refuse_modules(model, weights, folder)
    config: Any = read_config(folder)
    groups: dict[int, list[tuple[str, Lora]]] = {}
    for name, lora in loras(model).items():
        groups.setdefault(id(lora.layer.lora_A[lora.adapter]), []).append((name, lora))
    taken = sum(_take_pair(group, weights, config, folder) for group in groups.values())
    if not taken:
        raise UserError(
            f"{folder} has no LoRA on any module that has one in this model. Check that it is an adapter of this "
            "backbone, and method.target_projections."
        )
    head = ", and its head" if _take_head(model, weights) else ", and a fresh head" * bool(head_parameters(model))
    here = {tensor_name(name, half) for group in groups.values() for name, _ in group for half in HALVES}
    others = sum(".lora_A." in name and name not in here for name in weights)
    left = f"; left out, on other modules: {others}" if others else ""
    return f"started from {folder}: {taken} of {len(groups)} LoRAs{head}{left}"


def _refuse_modules(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Raise UserError if the adapter holds a module trained as a whole that is no head: what it learnt would be lost."""
    if next(model.parameters()).is_meta:
        return  # only a model with weights knows which modules are new and thus heads, such as BERT's pooler
    tops = tuple(f"{PREFIX}{name}." for name in {*HEADS, *heads(model)})
    whole = sorted(name for name in weights if ".lora_" not in name and not name.startswith(tops))
    if whole:
        raise UserError(
            f"train.start_from={folder} holds more than LoRAs and a head ({whole[0].removeprefix(PREFIX)}): training "
            "starts from A and B only, and everything else that was learnt would be lost. Name an adapter without it."
        )


def _take_pair(group: list[tuple[str, Lora]], weights: dict[str, Tensor], config: Any, folder: Path) -> bool:
    pairs = [[weights.get(tensor_name(name, half)) for half in HALVES] for name, _ in group]
    if any(half is None for pair in pairs for half in pair):
        return False
    (name, lora), first = group[0], [half for half in pairs[0] if half is not None]
    scaling = (config.lora_alpha or 0) / (config.r**0.5 if config.use_rslora else config.r)
    up = lora.layer.lora_B[lora.adapter].weight
    ours, theirs = ((*down.shape[1:], *up.shape[:1]) for down, up in ((lora.down, up), first))
    if ours != theirs:
        raise UserError(
            f"{folder} is an adapter of another backbone: {name} has the widths {theirs} there and {ours} here."
        )
    if first[0].shape != lora.down.shape or not math.isclose(scaling, lora.scaling, rel_tol=1e-5):
        raise UserError(
            f"{folder} has rank {len(first[0])} and scaling {scaling:g} in {name}, this run rank {lora.rank} and scaling "
            f"{lora.scaling:g}. Set method.rank={config.r} and method.alpha={scaling * config.r:g} to match the adapter."
        )
    if not all(
        torch.equal(one, other) for pair in pairs for one, other in zip(first, pair, strict=True) if other is not None
    ):
        return False
    with torch.no_grad():
        lora.down.copy_(first[0])
        up.copy_(first[1])
    return True


def _take_head(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Copy the head if all of it fits."""
    heads = {
        name.removeprefix(PREFIX).replace(".modules_to_save.default", ""): parameter
        for name, parameter in head_parameters(model).items()
    }
    stored = {name: weights.get(f"{PREFIX}{name}") for name in heads}
    if not heads or any(value is None or value.shape != heads[name].shape for name, value in stored.items()):
        return False
    with torch.no_grad():
        for name, value in stored.items():
            assert value is not None
            heads[name].copy_(value)
    return True
