"""Backbones with random weights.

- `tiny:NAME`: architectures at sizes that train in seconds, with a byte tokenizer, for tests and dry runs.
- `shape:NAME`: the sizes of a well-known model, to measure its cost without its weights. The tokenizer is that of
  packaged:minilm-l6, so that sentences have realistic lengths; all of these vocabularies are large enough for its ids.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from lora_drop.models import packaged, saved
from lora_drop.models.base import Backbone, BackboneKind, Loaded, Request

_TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
TINY: dict[str, dict[str, Any]] = {
    "bert": _TINY,
    "roberta": _TINY,
    "llama": {**_TINY, "num_attention_heads": 4, "num_key_value_heads": 2},
}
"""Sizes, by transformers' model type."""
TINY_POSITIONS = 512

_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "roberta-large": {
        **_ROBERTA,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "llama-2-7b": {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096},
}
"""Sizes that differ from transformers' defaults for the type, which are BERT-base's and Llama 2 7B's."""
HALF_ON_GPU = ("llama-2-7b",)
"""Models that a GPU gets in bf16: they are published in 16 bits, and in 32 bits would fill most of a GPU."""


def locate(name: str, request: Request) -> Backbone:
    """Return the backbone; there are no files to find."""
    return Backbone(name, "", f"{name}/1")


def tiny_config(backbone: Backbone) -> PretrainedConfig:
    """Return the configuration of a tiny model."""
    offset = 2 if backbone.model == "roberta" else 0  # RoBERTa counts positions from pad_token_id + 1
    tokens = tiny_tokenizer()
    return AutoConfig.for_model(
        backbone.model,
        vocab_size=len(tokens),
        max_position_embeddings=TINY_POSITIONS + offset,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        **TINY[backbone.model],
    )


def tiny_tokenizer(backbone: Backbone | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per byte, which encodes any text without a vocabulary file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TINY_POSITIONS,
    )


def tiny_model(backbone: Backbone, kind: Any, config: PretrainedConfig, device: torch.device | None) -> Loaded:
    """Draw random weights; see `BackboneKind.model`."""
    return kind.from_config(config), None


def shape_config(backbone: Backbone) -> PretrainedConfig:
    """Return the configuration of a model of these sizes."""
    return AutoConfig.for_model(**SHAPES[backbone.model])


def shape_tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase:
    """Return packaged:minilm-l6's tokenizer, adapted to RoBERTa, which has one token type, and to decoders."""
    return saved.load_tokenizer(
        packaged.locate("packaged:minilm-l6", Request()),
        model_input_names=["input_ids", "attention_mask"],
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def shape_model(backbone: Backbone, kind: Any, config: PretrainedConfig, device: torch.device | None) -> Loaded:
    """Draw random weights on the device, so that 7B never pass through main memory; see `BackboneKind.model`.

    The same seed gives the same weights on the same kind of device.
    """
    half = backbone.model in HALF_ON_GPU and device is not None and device.type == "cuda"
    with torch.device(device or "cpu"):
        return kind.from_config(config, dtype=torch.bfloat16 if half else torch.float32), None


TINY_KIND = BackboneKind("tiny", TINY, locate, tiny_config, tiny_tokenizer, tiny_model)
SHAPE_KIND = BackboneKind("shape", SHAPES, locate, shape_config, shape_tokenizer, shape_model)
