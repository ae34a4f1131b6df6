"""Texts that a causal model generates for prompts, and their metrics.

Decoding is greedy or uses beam search, so a text depends only on its prompt: not on its batch, nor on the sampling
settings that a checkpoint may contain.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
)

from lora_drop import processes
from lora_drop.config import schema as config
from lora_drop.data.completions import end_of_text, padding, prompt_collator
from lora_drop.data.sentences import batches
from lora_drop.evaluation.base import Evaluation, check_finite
from lora_drop.pruning.observation import eval_mode
from lora_drop.tasks.base import Task
from lora_drop.training.way import Way

Progress = Callable[[int, int], None]


def evaluate_generator(
    model: nn.Module,
    task: Task,
    rows: Dataset,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: config.GenerationConfig,
    batch_size: int,
    way: Way | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> Evaluation:
    """Generate a text for each of `encoded`, the tokenised prompts of `rows`, and compare it with the row's references.

    See `generate` for the arguments; `way` is how the model is computed. Texts are compared without surrounding
    whitespace.
    """
    from lora_drop.evaluation.metrics.texts import score_texts  # imported late: most stages do not need it

    with way.over() if way else nullcontext():
        texts = generate(model, encoded, tokenizer, settings, batch_size, progress=progress, journal=journal)
    texts = [text.strip() for text in texts]
    references = [list(given) for given in rows["references"]]
    prompts = list(rows["prompt"]) if "prompt" in rows.column_names else None  # conversations have none
    scores = score_texts(task.metrics, texts, references, prompts=prompts)
    columns = zip(rows["id"], texts, references, strict=True)
    skipped = {"skipped": scores.skipped} if scores.skipped else {}
    return Evaluation(
        scores.metrics,
        [{"id": row, "prediction": text, "references": given} for row, text, given in columns],
        {"signatures": scores.signatures, **skipped},
    )


def generate(
    model: Any,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: config.GenerationConfig,
    batch_size: int,
    *,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> list[str]:
    """Continue every prompt. The longest come first, so that running out of memory shows at once.

    With several processes, each continues a share of the batches.

    Args:
        model: A causal language model, with or without an adapter. Its train or eval mode is restored afterwards.
        encoded: The prompts' `input_ids` and `attention_mask`.
        tokenizer: The backbone's tokenizer.
        settings: Beams, length, penalties.
        batch_size: Prompts at a time.
        progress: Called with the number of finished prompts and the total.
        journal: File that finished batches are appended to. Rows that it already contains are not generated again, even
            if the batch size has changed. With several processes, each has its own file next to it.

    Returns:
        The generated text for each prompt, in the rows' order, without end-of-text and special tokens.

    Raises:
        UserError: If a score is NaN: training has diverged.
    """
    decoding, device = decoding_config(settings, tokenizer), next(model.parameters()).device
    texts: dict[int, str] = {}
    if journal and processes.size() > 1:
        journal = journal.with_suffix(f".{processes.rank()}-of-{processes.size()}{journal.suffix}")
    finished, lines = read_journal(journal) if journal else ({}, 0)
    with eval_mode(model), torch.no_grad():
        shared = batches(encoded, prompt_collator(tokenizer), batch_size, share=processes.mine)
        for chosen, batch in shared:
            if not finished.keys() >= set(chosen):
                inputs = {name: tensor.to(device) for name, tensor in batch.items()}
                written = _continue(model, inputs, tokenizer, decoding, settings.no_repeat_ngram_size)
                finished |= zip(chosen, written, strict=True)
                if journal:
                    _append(journal, lines, dict(zip(chosen, written, strict=True)))
                    lines += 1
            texts |= {row: finished[row] for row in chosen}
            if progress:
                progress(min(processes.size() * len(texts), len(encoded)), len(encoded))
    for others in processes.everywhere(texts):
        texts |= others
    return [texts[index] for index in range(len(encoded))]


def decoding_config(settings: config.GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return transformers' settings. Beam settings are included only with several beams, as transformers warns else."""
    beams = {"length_penalty": settings.length_penalty, "early_stopping": False} if settings.num_beams > 1 else {}
    return GenerationConfig(
        do_sample=False,
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=end_of_text(tokenizer),
        pad_token_id=padding(tokenizer),
        use_cache=True,
        **beams,
    )


class NoRepeatedText(LogitsProcessor):
    """Forbids repeated n-grams in the generated text.

    transformers' own rule also counts the prompt, so that no name could be copied from it.
    """

    def __init__(self, size: int, start: int):
        """Forbid repeated n-grams of `size` tokens; generated tokens begin at position `start`."""
        self.rule, self.start = NoRepeatNGramLogitsProcessor(size), start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` (`batch vocabulary`) without the tokens that would repeat an n-gram."""
        return self.rule(input_ids[:, self.start :], scores)


class Finite(LogitsProcessor):
    """Raises UserError if a score is NaN. Otherwise the argmax of NaNs would pass for a token, and produce a text."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` (`batch vocabulary`) unchanged."""
        check_finite(float(scores.max()))  # NaN if any score is
        return scores


def _continue(
    model: Any,
    inputs: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    decoding: GenerationConfig,
    no_repeat: int,
) -> list[str]:
    start = inputs["input_ids"].shape[1]
    rules = LogitsProcessorList([Finite(), *([NoRepeatedText(no_repeat, start)] if no_repeat else [])])
    outputs = model.generate(**inputs, generation_config=decoding, logits_processor=rules)
    return [_decode(tokenizer, row, decoding.eos_token_id) for row in outputs[:, start:].tolist()]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], end: int) -> str:
    """Return the text up to the first end-of-text token."""
    return str(tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True))


def read_journal(path: Path) -> tuple[dict[int, str], int]:
    """Return the texts of finished rows and the number of valid lines. Truncate the file at the first invalid line.

    Each line is a batch and begins with a digest of its number and texts. A killed process may leave an incomplete one.
    """
    if not path.is_file():
        return {}, 0
    found: dict[int, str] = {}
    content = path.read_bytes()
    lines = length = 0
    for line in content.splitlines(keepends=True):
        seal, _, texts = line.partition(b" ")
        if not line.endswith(b"\n") or seal != _seal(lines, texts[:-1]):
            break
        found |= {int(row): text for row, text in json.loads(texts).items()}
        lines, length = lines + 1, length + len(line)
    if length < len(content):
        os.truncate(path, length)
    return found, lines


def _seal(number: int, texts: bytes) -> bytes:
    return hashlib.sha256(b"batch %d %s" % (number, texts)).hexdigest().encode()


def _append(path: Path, number: int, texts: dict[int, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(texts).encode()
    with path.open("ab") as file:
        file.write(_seal(number, line) + b" " + line + b"\n")
        file.flush()
        os.fsync(file.fileno())
