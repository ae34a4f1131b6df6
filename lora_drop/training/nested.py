"""Nested values with tensors, such as the state of an optimizer, in one safetensors file instead of a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

STRUCTURE = "structure"


def save_nested(value: Any, path: Path) -> None:
    """Write nested mappings, lists, tuples, numbers, strings and tensors. Raises TypeError for anything else."""
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_apart(value, tensors))
    save_file(tensors, path, {STRUCTURE: structure})


def load_nested(path: Path) -> Any:
    """Return the value that `save_nested` wrote, with its tensors on the CPU."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return _together(json.loads(file.metadata()[STRUCTURE]), tensors)


def _apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON that refers to its tensors by name, and add them to `tensors`."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):  # its keys may be numbers, which JSON does not allow
        return {"mapping": [[key, _apart(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_apart(entry, tensors) for entry in value]}
    if isinstance(value, list):
        return [_apart(entry, tensors) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a checkpoint")


def _together(structure: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(structure, list):
        return [_together(entry, tensors) for entry in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_together(entry, tensors) for entry in content)
    return {key: _together(entry, tensors) for key, entry in content}
