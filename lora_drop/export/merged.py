"""`--to merged`: the whole model in transformers' format, with the adapter merged into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lora_drop.errors import UserError
from lora_drop.export.source import ExportedRun
from lora_drop.models.backbones import load_config, load_model, load_tokenizer, locate
from lora_drop.registry import METHODS
from lora_drop.runs.load import check_weights


def merged(source: ExportedRun, folder: Path) -> str:
    """Write model and tokenizer; return size and precision in words.

    The sum is computed in fp32 and written in the precision of the backbone's files. An adapter trained on 4-bit
    weights is merged into the unquantized weights and written in bf16, because 4-bit weights cannot represent the sum.
    """
    config, task = source.run.config, source.task
    method, adapter = METHODS.get(config.method.name), source.adapter
    refusal = UserError(f"{source.facts.title} cannot be merged into the weights of its backbone.")
    if not method.merges:
        raise refusal
    quantized = config.quantization != "none"
    backbone = locate(config.backbone, config.offline, known=source.origin or None)
    check_weights(source.run, backbone)
    tokenizer = load_tokenizer(backbone, causal=task.kind == "generation")
    plain = load_model(backbone, task, config.seed, tokenizer)
    model: Any = method.load(plain, adapter)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if not isinstance(model, PreTrainedModel):  # a plugin's method may load anything
        raise refusal
    kept: Any = torch.bfloat16 if quantized else load_config(backbone, task).dtype or torch.float32
    model = model.to(kept)
    if task.labels:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: index for index, label in enumerate(task.labels)}
    if task.kind != "generation":  # so that truncation is the same as in training
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.train.max_length)
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side  # transformers saves it from there alone
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    precision = str(kept).removeprefix("torch.")
    why = "trained on 4-bit weights, merged into the unquantized ones" if quantized else "rounded as the backbone's are"
    differs = f"; {why}: outputs differ a little" if kept != torch.float32 else ""
    return f"{size:,} bytes of {precision} weights{differs}"
