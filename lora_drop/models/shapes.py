"""Backbones of a well-known model's sizes with random weights: what a real model costs can be measured where its weights are not.

The tokenizer is that of packaged:minilm-l6, whose ids all of these vocabularies have, so that sentences have realistic lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

TOKENIZER = "packaged:minilm-l6"
TOKENIZER_OPTIONS: dict[str, Any] = {
    "model_input_names": ["input_ids", "attention_mask"],  # RoBERTa has one type of tokens, Llama none
    "bos_token": "[CLS]",  # a decoder needs a beginning and an end
    "eos_token": "[SEP]",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model."""

    model_type: str
    sizes: dict[str, Any] = field(default_factory=dict)
    """Values that differ from transformers' defaults for the type, which are BERT-base's and Llama 2 7B's."""
    half_on_gpu: bool = False
    """True if a GPU gets the weights in bf16: the model is published in 16 bits and would fill most of a GPU in 32."""


SHAPES = {
    "roberta-base": Shape("roberta", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-large": Shape(
        "roberta",
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "llama-2-7b": Shape("llama", {"vocab_size": 32000, "max_position_embeddings": 4096}, half_on_gpu=True),
}


def shape_config(name: str) -> PretrainedConfig:
    """Return the configuration of a model of these sizes."""
    shape = SHAPES[name]
    return AutoConfig.for_model(shape.model_type, **shape.sizes)


def random_model(name: str, kind: Any, config: PretrainedConfig, device: torch.device | None) -> PreTrainedModel:
    """Build a model of transformers' class `kind` with random weights, drawn where it will compute: so 7B never pass through main memory.

    The caller has seeded torch. The same seed gives the same weights on one kind of device.
    """
    on_gpu = device is not None and device.type == "cuda"
    dtype = torch.bfloat16 if SHAPES[name].half_on_gpu and on_gpu else torch.float32
    with torch.device(device or "cpu"):
        model: PreTrainedModel = kind.from_config(config, dtype=dtype)
    return model
