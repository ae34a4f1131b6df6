"""The names of a LoRA's tensors in a saved adapter, in a module that does not import torch."""

from __future__ import annotations

PREFIX = "base_model.model."
"""PEFT's prefix for the names of the model's modules."""
HALVES = ("lora_A", "lora_B")


def tensor_name(name: str, half: str) -> str:
    """Return the name, in a saved adapter, of A or B (`half`, one of HALVES) of a module's LoRA."""
    return f"{PREFIX}{name}.{half}.weight"
