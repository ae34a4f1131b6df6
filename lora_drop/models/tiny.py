"""Architectures at sizes that train in seconds, with random weights and a tokenizer of bytes: for tests and dry runs."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}),
    "roberta": (
        "roberta",
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64},
    ),
    "llama": (
        "llama",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        },
    ),
}
TINY_POSITIONS = 512


def tiny_config(architecture: str) -> PretrainedConfig:
    """Return the sizes of a tiny model."""
    model_type, sizes = TINY[architecture]
    offset = 2 if model_type == "roberta" else 0  # RoBERTa counts positions from pad_token_id + 1
    tokens = tiny_tokenizer()
    special = {
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
    }
    return AutoConfig.for_model(
        model_type, vocab_size=len(tokens), max_position_embeddings=TINY_POSITIONS + offset, **special, **sizes
    )


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """One token per byte, so that any text is encoded without a vocabulary file."""
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
