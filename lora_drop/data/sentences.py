"""Tokenise text, and collate tokenised rows into padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from lora_drop.data.batches import row_lengths

Collate = Callable[[list[dict]], dict[str, torch.Tensor]]
"""Makes a padded batch from rows."""
Encoded = tuple[Dataset, list[str]]
"""Tokenised rows, and notices about them for the user."""


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, int, int]:
    """Tokenise classification or regression rows.

    Args:
        rows: rows with `text`, `label` and optionally `text_pair`.
        tokenizer: the backbone's tokenizer.
        max_length: longer inputs are cut, starting with the longer sentence of a pair.

    The tokenizers of most decoders put nothing between the sentences of a pair, so a line end is added. Some put
    nothing around a sentence either, so that an empty one has no token. It gets the end-of-text token, or the padding
    token if there is none, since a model needs at least one token.

    Returns:
        Rows with `input_ids`, `attention_mask`, `labels` and, for some tokenizers, `token_type_ids`; the number of
        inputs that were cut; and the number that had no token.
    """
    texts = list(rows["text"])
    pairs = list(rows["text_pair"]) if "text_pair" in rows.column_names else None
    if pairs and not tokenizer.num_special_tokens_to_add(pair=True):
        texts = [f"{text}\n" for text in texts]
    encoded = tokenizer(
        texts, pairs, truncation="longest_first", max_length=max_length, return_overflowing_tokens=False
    )
    empty = [row for row, ids in enumerate(encoded["input_ids"]) if not ids]
    for row in empty:
        encoded["input_ids"][row], encoded["attention_mask"][row] = [_filler(tokenizer)], [1]
    full = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_length]
    cut = sum(length > max_length for length in _whole_lengths(tokenizer, texts, pairs, full))
    return Dataset.from_dict({**encoded, "labels": list(rows["label"])}), cut, len(empty)


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def _whole_lengths(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, chosen: list[int]
) -> list[int]:
    """Return the numbers of tokens of the chosen inputs when they are not cut."""
    if not chosen:  # a tokenizer refuses an empty list
        return []
    second = [pairs[row] for row in chosen] if pairs else None
    return [len(ids) for ids in tokenizer([texts[row] for row in chosen], second, verbose=False)["input_ids"]]


def collator(tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Return a function that pads rows to the longest of a batch."""
    return DataCollatorWithPadding(tokenizer)


def batches(
    rows: Dataset,
    collate: Collate,
    batch_size: int,
    by_tokens: bool = False,
    share: Callable[[Iterator[list[int]]], Iterator[list[int]]] = iter,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield (row indices, batch) over all rows, grouped by similar length, longest first.

    Args:
        rows: tokenised rows.
        collate: makes a batch from rows.
        batch_size: rows per batch.
        by_tokens: put more rows into batches of shorter rows, up to the number of tokens in the first batch.
        share: chooses among the batches of row indices; `processes.mine` gives each process its own.
    """
    for chosen in share(_groups(row_lengths(rows), batch_size, by_tokens)):
        yield chosen, dict(collate([rows[index] for index in chosen]))


def _groups(lengths: list[int], batch_size: int, by_tokens: bool) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        longest, here = lengths[order[0]], lengths[order[start]]
        size = batch_size * longest // here if by_tokens else batch_size
        yield order[start : start + size]
        start += size
