"""Turn prompts and completions into tokens, batches, and a loss.

The completion and the end of the text are learned, the prompt is not. Padding is known from lengths alone, never from
token ids: many decoders pad with the end-of-text token, which must be learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from lora_drop.data.sentences import Collate
from lora_drop.errors import UserError

IGNORED = -100
"""The label of tokens that are not learned: prompt and padding."""


@dataclass(frozen=True)
class Cut:
    """Numbers of texts that were cut because they were too long."""

    prompts: int = 0
    completions: int = 0


def encode_prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, Cut]:
    """Tokenise evaluation rows: the prompt alone.

    Args:
        rows: rows with `prompt`.
        tokenizer: the backbone's tokenizer.
        max_length: most tokens of a prompt; longer ones lose their beginning, see `encode_pairs`.

    Returns:
        Rows with `input_ids` and `attention_mask`; and the number that were cut.
    """
    lead = leading(tokenizer)
    prompts = _tokens(tokenizer, rows["prompt"])
    room = max_length - len(lead)
    ids = [lead + _end(prompt, room) or [end_of_text(tokenizer)] for prompt in prompts]
    cut = Cut(prompts=sum(len(prompt) > room for prompt in prompts))
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}), cut


def encode_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, Cut]:
    """Tokenise training rows: prompt, completion, end of text.

    A text that is too long loses as many tokens as needed from the beginning of its prompt: the end of the prompt holds
    the instruction that the completion follows, and a completion without its end would teach the model to stop in the
    middle. Only a completion that is too long by itself is cut, at its end. It then has no end-of-text token, as the
    text does not end there. At least one token always precedes a completion, so that its first token can be predicted:
    the end-of-text token if there is no prompt.

    Args:
        rows: rows with `prompt` and `completion`.
        tokenizer: the backbone's tokenizer.
        max_length: most tokens of prompt and completion together.

    Returns:
        Rows with `input_ids`, `attention_mask`, and `labels`, which are IGNORED on the prompt; and the numbers of
        prompts and completions that were cut.

    Raises:
        UserError: if the tokenizer has no end-of-text token.
    """
    lead, end = leading(tokenizer), end_of_text(tokenizer)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    prompts = completions = 0
    pairs = zip(_tokens(tokenizer, rows["prompt"]), _tokens(tokenizer, rows["completion"]), strict=True)
    for prompt, completion in pairs:
        room = max_length - max(len(lead), 1)
        learned = [*completion, end][:room]
        before = lead + _end(prompt, max_length - len(lead) - len(learned)) or [end]
        prompts += len(before) < len(lead) + len(prompt)
        completions += len(learned) <= len(completion)
        columns["input_ids"].append(before + learned)
        columns["attention_mask"].append([1] * len(before + learned))
        columns["labels"].append([IGNORED] * len(before) + learned)
    return Dataset.from_dict(columns), Cut(prompts, completions)


def leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before every text: the begin-of-text token (Llama 2), or none."""
    first = tokenizer("")["input_ids"][:1]
    return list(first) if first == [tokenizer.bos_token_id] else []


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a text. Raise UserError if there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "This backbone's tokenizer has no end-of-text token, so a model cannot learn where to stop. Choose another backbone."
        )
    return tokenizer.eos_token_id


def pair_collator(tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Return a function that pads training rows on the right, so that positions count from the first real token."""
    return lambda rows: _pad(rows, padding(tokenizer), left=False)


def prompt_collator(tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Return a function that pads prompts on the left, so that generated text follows the prompt's last token."""
    return lambda rows: _pad(rows, padding(tokenizer), left=True)


def token_loss(smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
    """Return the loss of a language model: the mean over all learned tokens of the WHOLE batch, however it is split.

    (A mean of the parts' means would give tokens weights that depend on the split.)

    Args:
        smoothing: share of each label's probability that is spread over the vocabulary.

    Returns:
        `loss(outputs, labels, num_items_in_batch)`, with `outputs.logits` (`batch seq vocabulary`, or `1 learned
        vocabulary` for the learned tokens alone, in order), `labels` (`batch seq`, IGNORED at tokens that are not
        learned) and the number of learned tokens in the whole batch. Without that number, it is the mean over the
        learned tokens given.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        targets = labels[:, 1:]
        learned = targets != IGNORED
        logits = outputs.logits
        # a packed batch was reduced to the learned tokens before the output layer
        logits = (logits[:, :-1][learned] if logits.shape[:2] == labels.shape else logits[0]).float()
        total = functional.cross_entropy(logits, targets[learned], reduction="sum", label_smoothing=smoothing)
        return total / (learned.sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


def _pad(rows: Sequence[dict], filling: int, left: bool) -> dict[str, torch.Tensor]:
    """Return a tensor `batch seq` per column, padded with `filling` (labels with IGNORED, the mask with 0)."""
    fillers = {"input_ids": filling, "attention_mask": 0, "labels": IGNORED}
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(row: dict, name: str) -> list[int]:
        filler = [fillers[name]] * (longest - len(row[name]))
        return filler + row[name] if left else row[name] + filler

    return {name: torch.tensor([filled(row, name) for row in rows]) for name in fillers if name in rows[0]}


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that pads a batch: the tokenizer's padding token, or else the end-of-text token."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_of_text(tokenizer)


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def _end(ids: list[int], room: int) -> list[int]:
    """Return the last `room` tokens."""
    return ids[max(0, len(ids) - room) :]
