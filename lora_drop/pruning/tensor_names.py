"""The names of a LoRA's tensors in a saved adapter. (Apart from what computes with them, so that asking imports no torch.)"""

from __future__ import annotations

PREFIX = "base_model.model."
"""PEFT puts it before the names that modules had in the model."""
HALVES = ("lora_A", "lora_B")


def tensor_name(name: str, half: str) -> str:
    """Return the name in a saved adapter of A or B (`half`, one of HALVES) of a module's LoRA."""
    return f"{PREFIX}{name}.{half}.weight"
