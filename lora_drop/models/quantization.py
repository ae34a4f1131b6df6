"""A frozen backbone in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

Weights are NF4 with quantized constants; arithmetic is in bf16.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.models.base import prefix_of
from lora_drop.registry import METHODS


def check_quantization(config: Config, device: torch.device) -> None:
    """Raise UserError if quantization is requested but this machine, backbone or method does not support it."""
    if config.quantization == "none":
        return
    asked = f"quantization={config.quantization}"
    if not METHODS.get(config.method.name).quantizes:
        raise UserError(
            f"{asked} needs a method that is a PEFT adapter, and {config.method.name} is not one. Choose another "
            "method, or quantization=none."
        )
    if prefix_of(config.backbone):
        raise UserError(
            f"{asked} is for backbones from the Hub or a folder; {config.backbone} is neither. Set quantization=none."
        )
    if device.type != "cuda":
        raise UserError(f"{asked} needs an NVIDIA GPU, but the device is {device.type}. Set quantization=none.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{asked} needs the package bitsandbytes. Install it with: pip install 'lora-drop[qlora]'")


def nf4() -> BitsAndBytesConfig:
    """Return transformers' settings for NF4."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
