"""The compact form of a LoRA-drop adapter, which stores each shared pair once.

It is a folder with `lora_drop.safetensors` and `lora_drop.json`, which lists the tied modules and holds PEFT's
configuration. Neither file has a name that PEFT looks for. PEFT ignores missing tensors, so if it loaded this form into
a model without ties, all but one of the sharing layers would silently keep their initial values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_drop.errors import UserError
from lora_drop.faults import foreign
from lora_drop.methods.folder import COMPACT
from lora_drop.methods.saved_config import checked
from lora_drop.pruning.tensor_names import HALVES, tensor_name

WEIGHTS, TIES = COMPACT, "lora_drop.json"


def is_compact(folder: Path) -> bool:
    """Return True if a folder holds an adapter in the compact form."""
    return (folder / WEIGHTS).is_file()


def write_compact(adapter: Path, folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Write the compact form of a saved LoRA-drop adapter into an empty folder.

    `adapter` is a folder written by `methods.lora_drop`; `changes` are other values for PEFT's configuration. Raise
    UserError if the adapter is damaged.
    """
    try:
        groups = tied_groups(json.loads((adapter / TIES).read_text(encoding="utf-8")))
        config = {**json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")), **(changes or {})}
        weights = load_file(adapter / "adapter_model.safetensors")
        for _, *others in groups:
            for name in others:
                for half in HALVES:
                    del weights[tensor_name(name, half)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"{adapter} holds no complete LoRA-drop adapter ({type(error).__name__}: {error}).") from error
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    content = {"version": 1, "compact": True, "tied": groups, "adapter_config": config}
    (folder / TIES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_compact(folder: Path) -> tuple[LoraConfig, list[list[str]], dict[str, Tensor]]:
    """Return PEFT's configuration, the tied groups, and all tensors, with a copy of a shared pair for each module.

    Raise UserError if the folder is damaged.
    """
    with foreign(f"{folder} holds no complete compact adapter. Export it again"):
        content: dict[str, Any] = json.loads((folder / TIES).read_text(encoding="utf-8"))
        weights, groups = load_file(folder / WEIGHTS), tied_groups(content)
        config = checked(PeftConfig.from_peft_type(**content["adapter_config"]))
        if not isinstance(config, LoraConfig):
            raise ValueError(f"it is {config.peft_type}, not LoRA")
        for first, *others in groups:
            for half in HALVES:
                weights |= {tensor_name(name, half): weights[tensor_name(first, half)].clone() for name in others}
    return config, groups, weights


def tied_groups(content: Any) -> list[list[str]]:
    """Return the groups of modules that share a LoRA, from the content of `lora_drop.json`.

    Raise ValueError if it is malformed.
    """
    groups = content.get("tied") if isinstance(content, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, list) and group for group in groups):
        raise ValueError(f"{TIES} does not say what is tied")
    if not all(isinstance(name, str) for group in groups for name in group):
        raise ValueError(f"{TIES} ties names that are not modules")
    return groups
