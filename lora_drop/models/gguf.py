"""Load weights from a GGUF file, reading it once per process.

Reading takes half a minute for 135M parameters, mostly for parsing the file's vocabulary in Python, and a run loads its
backbone three times.
"""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from functools import lru_cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


def gguf_config(folder: str, file: str) -> PretrainedConfig:
    """Return the configuration in a GGUF file; the caller may change it."""
    return copy.deepcopy(_config(folder, file))


def fill_from_gguf(model: PreTrainedModel, folder: str, file: str) -> list[str]:
    """Copy the dequantised weights into a model of the architecture, and return the names of those the file lacks."""
    return model.load_state_dict(_state(folder, file), strict=False).missing_keys


@lru_cache(maxsize=1)
def _config(folder: str, file: str) -> PretrainedConfig:
    return AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)


@lru_cache(maxsize=1)
def _state(folder: str, file: str) -> dict[str, torch.Tensor]:
    """Return all weights in fp32 by their names in a language model, which a classifier shares except for its head."""
    config = gguf_config(folder, file)
    with redirect_stderr(io.StringIO()):  # a progress bar that cannot be disabled
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, config=config, dtype=torch.float32, trust_remote_code=False
        )
    return dict(model.state_dict())
