"""Perplexity of a language model on the answers of the evaluation rows."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from lora_drop import processes
from lora_drop.data.completions import IGNORED, pair_collator, token_loss
from lora_drop.data.sentences import batches
from lora_drop.evaluation.base import check_finite
from lora_drop.pruning.observation import eval_mode
from lora_drop.training.way import Way

NAME = "perplexity"


def perplexity(
    model: nn.Module, encoded: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int, way: Way | None = None
) -> float:
    """Return exp of the mean loss over all learned tokens. The model's train or eval mode is restored afterwards.

    Args:
        model: A causal language model, with or without an adapter.
        encoded: Rows tokenised as for training: `input_ids`, `attention_mask`, `labels`.
        tokenizer: The backbone's tokenizer.
        batch_size: Rows at a time.
        way: How the model is computed; None is its own way.

    Raises:
        UserError: If the loss is not finite: training has diverged.
    """
    device, loss = next(model.parameters()).device, token_loss()
    total, count = 0.0, 0
    with eval_mode(model), torch.no_grad(), way.over() if way else nullcontext():
        for _, batch in batches(encoded, pair_collator(tokenizer), batch_size, share=processes.mine):
            given = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = given.pop("labels")
            total += float(loss(model(**given), labels, 1))
            count += int((labels[:, 1:] != IGNORED).sum())
    total, count = map(sum, zip(*processes.everywhere((total, count)), strict=True))
    check_finite(total)
    return math.exp(min(total / count, 700.0))  # exp of more would overflow
