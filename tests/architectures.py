"""Checkpoints as the Hub has them: saved by the class that was pretrained, without a classifier, with a tokenizer; small and random."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

ENCODER, DECODER, BOTH = AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
GROUPED = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
POSITIONS = 80


@dataclass(frozen=True)
class Architecture:
    """One architecture: its name in transformers, the class that was pretrained, and what its configuration needs."""

    model_type: str
    pretrained: Any
    options: dict[str, Any] = field(default_factory=dict)
    pad: int = 0
    """Where the padding token is among the special ones: RoBERTa's is 1, after the beginning."""
    positions: int = POSITIONS
    """Rows of the position embedding."""
    mixes_padding: bool = False
    """Its layers mix tokens with the padding behind them (a convolution, landmarks), so that outputs depend on how a batch is padded."""
    name: str = ""
    """Told apart from another one of the same type."""

    def __str__(self) -> str:
        return self.name or self.model_type


ALL = (
    Architecture("bert", ENCODER, SIZES),
    Architecture("roberta", ENCODER, SIZES, pad=1, positions=POSITIONS + 2),
    Architecture("xlm-roberta", ENCODER, SIZES, pad=1, positions=POSITIONS + 2),
    Architecture("camembert", ENCODER, SIZES, pad=1, positions=POSITIONS + 2),
    Architecture("mpnet", ENCODER, SIZES, pad=1, positions=POSITIONS + 2),
    Architecture("data2vec-text", ENCODER, SIZES, pad=1, positions=POSITIONS + 2),
    Architecture("distilbert", ENCODER, {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64}),
    Architecture("albert", ENCODER, {**SIZES, "embedding_size": 16}),
    Architecture("electra", ENCODER, {**SIZES, "embedding_size": 16}),
    Architecture("roformer", ENCODER, {**SIZES, "embedding_size": 32}),
    Architecture("convbert", ENCODER, {**SIZES, "embedding_size": 32}, mixes_padding=True),
    Architecture("nystromformer", ENCODER, SIZES, positions=512, mixes_padding=True),
    Architecture("deberta", ENCODER, {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    Architecture(
        "deberta-v2",
        ENCODER,
        {
            **SIZES,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "layer_norm_eps": 1e-7,
            "max_relative_positions": -1,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        name="deberta-v3",
    ),
    Architecture("modernbert", ENCODER, {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8}),
    Architecture("opt", DECODER, {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}, pad=1),
    Architecture("gpt2", DECODER, {"n_embd": 32, "n_layer": 3, "n_head": 2}),
    Architecture("llama", DECODER, GROUPED),
    Architecture("qwen2", DECODER, GROUPED),
    Architecture("qwen3", DECODER, {**GROUPED, "head_dim": 16}),
    Architecture("gemma2", DECODER, {**GROUPED, "head_dim": 16, "sliding_window": 16}),
    Architecture("gemma3_text", DECODER, {**GROUPED, "head_dim": 16, "sliding_window": 16}),
    Architecture("phi", DECODER, SIZES),
    Architecture("phi3", DECODER, GROUPED),
    Architecture("mistral", DECODER, {**GROUPED, "sliding_window": 16}),
    Architecture("mixtral", DECODER, {**GROUPED, "num_local_experts": 4}),
    Architecture("olmo2", DECODER, GROUPED),
    Architecture("smollm3", DECODER, GROUPED),
    Architecture("gpt_neox", DECODER, SIZES),
    Architecture("falcon", DECODER, {**SIZES, "new_decoder_architecture": False}),
    Architecture(
        "t5",
        BOTH,
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2},
    ),
    Architecture(
        "bart",
        BOTH,
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
        },
        pad=1,
    ),
)


def tokenizer(pad: int = 0, positions: int = POSITIONS) -> PreTrainedTokenizerFast:
    """One token per byte between a beginning and an end."""
    specials = ["<s>", "</s>", "<unk>"]
    specials.insert(pad, "<pad>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(specials + alphabet)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=positions,
    )


def make_checkpoint(folder: Path, architecture: Architecture, seed: int = 0) -> Path:
    """Save a checkpoint, and return its folder."""
    tokens = tokenizer(architecture.pad)
    special = {
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "cls_token_id": tokens.bos_token_id,
        "sep_token_id": tokens.eos_token_id,
    }
    if architecture.pretrained is BOTH:
        special["decoder_start_token_id"] = tokens.pad_token_id
    config = AutoConfig.for_model(
        architecture.model_type,
        vocab_size=len(tokens),
        **{"max_position_embeddings": architecture.positions, **special, **architecture.options},
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pretraining classes warn about settings that only matter to them
        model = architecture.pretrained.from_config(config)
        with torch.no_grad():  # transformers' initial values are so small that layers hardly differ
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
        model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def run(backbone: Path, directory: Path, *options: str) -> Path:
    """Run all five stages of LoRA-drop on a checkpoint through the command line, as small as can be; return the run directory."""
    from lora_drop.cli.app import main

    settings = {
        "backbone": backbone,
        "task": "toy-nli",
        "sample.ratio": 0.5,
        "method.threshold": 0.6,
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.max_length": 64,
        "train.learning_rate": 5e-3,
    }
    chosen = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    limits = ["--limit-train", "48", "--limit-eval", "16", "--bootstrap", "10", "--device", "cpu", "--quiet"]
    try:
        main(["run", "-d", str(directory), *chosen, *limits, *options])
    except SystemExit as end:
        if end.code:
            raise
    return directory


def table_row(architecture: Architecture, directory: Path) -> str:
    """Return what docs/models.md says of an architecture, from a run on it."""
    stages = json.loads((directory / "run.json").read_text(encoding="utf-8"))["stages"]
    projections = json.loads((directory / "selection.json").read_text(encoding="utf-8"))["projections"]
    computed = stages["train"]["computed"].rpartition("; fp32 products")[0].split(". ")[0]
    return f"| {architecture} | {', '.join(f'`{name}`' for name in projections)} | {computed} |"
