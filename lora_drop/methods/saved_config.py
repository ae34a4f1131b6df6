"""Check PEFT's configuration of a saved adapter, as PEFT itself accepts whatever the file says."""

from __future__ import annotations

import math
from typing import TypeVar

from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig

from lora_drop.methods.base import outermost

C = TypeVar("C", bound=PeftConfig)


def checked(config: C) -> C:
    """Return a configuration that was read, ready to put an adapter on a model. Raise ValueError if it is invalid."""
    if getattr(config, "megatron_config", None):  # PEFT would import whatever module the file names
        raise ValueError("it is an adapter for Megatron")
    config.inference_mode = False
    config.base_model_name_or_path = None  # the model has its own; PEFT warns about any other name
    if isinstance(config, LoraConfig | AdaLoraConfig | VeraConfig):
        _check_sizes(config)
        # adapters saved by earlier versions name a head and also its parts
        config.modules_to_save = outermost(config.modules_to_save or ()) or None
    return config


def _check_sizes(config: LoraConfig | AdaLoraConfig | VeraConfig) -> None:
    """Raise ValueError for an invalid rank or alpha; PEFT accepts anything."""
    rank, alpha = config.r, getattr(config, "lora_alpha", 1)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"its rank r is {rank!r}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"its lora_alpha is {alpha!r}")
