"""Everything that depends on the kind of a task: tokenisation and batches, the loss, the evaluation.

`classification`, `multilabel` and `regression` use a classifier on the backbone; `generation` uses a language model
that continues a prompt. The stages call this module and never test the kind themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from lora_drop.config.schema import Config
from lora_drop.data.chats import encode_chats, encode_questions
from lora_drop.data.completions import encode_pairs, encode_prompts, pair_collator, token_loss
from lora_drop.data.sentences import Collate, Encoded, collator, encode
from lora_drop.errors import UserError
from lora_drop.evaluation.base import Evaluation
from lora_drop.evaluation.classifier import evaluate_classifier
from lora_drop.evaluation.generator import evaluate_generator
from lora_drop.evaluation.perplexity import NAME as PERPLEXITY
from lora_drop.evaluation.perplexity import perplexity
from lora_drop.tasks.base import Task
from lora_drop.training.trainer import Loss
from lora_drop.training.way import Way

PART = 5000
"""Number of rows tokenised at a time."""


@dataclass(frozen=True)
class Kind:
    """One kind of task."""

    causal: bool
    """True if the backbone continues texts, False if it has a classifier."""
    scored_each_epoch: bool
    """True if evaluation is so cheap that it runs after each epoch, even if it selects none."""
    check: Callable[[Config, Task], None]
    """Raises UserError for settings that do not fit this kind, before any time is spent."""
    encode_training: Callable[[Dataset, PreTrainedTokenizerBase, Config, str], Encoded]
    """`encode_training(rows, tokenizer, config, what)`; `what` is the name of the rows in notices."""
    encode_evaluation: Callable[[Dataset, PreTrainedTokenizerBase, Config, str], Encoded]
    collate: Callable[[PreTrainedTokenizerBase], Collate]
    """Makes the function that pads training rows to a batch."""
    loss: Callable[[float], Loss | None]
    """`loss(label_smoothing)` returns the loss to minimise; None is the model's own."""
    evaluate: Callable[..., Evaluation]
    """`evaluate(model, task, rows, encoded, tokenizer, config, way, progress, journal)`. `encoded` holds the tokens of
    the evaluation `rows`; `journal` may store progress, from which a killed evaluation continues."""
    settings: Callable[[Config], dict[str, Any]]
    """Returns the part of the configuration that, besides adapter and rows, determines the result of an evaluation."""


def get_kind(task: Task) -> Kind:
    """Return the kind of a task."""
    return _GENERATOR if task.kind == "generation" else _CLASSIFIER


def _notices(rows: Dataset, what: str, counts: Mapping[str, int]) -> list[str]:
    """Return one notice for each nonzero count of affected rows."""
    return [f"{count:,} of {len(rows):,} {what} {text}" for text, count in counts.items() if count]


def _in_parts(
    rows: Dataset, encode_some: Callable[[Dataset], tuple[Dataset, Sequence[int]]]
) -> tuple[Dataset, list[int]]:
    """Tokenise rows in parts and add up their counts. Tokens in Python lists would take fifty times the memory."""
    parts = [
        encode_some(rows.select(range(start, min(start + PART, len(rows)))))
        for start in range(0, max(len(rows), 1), PART)
    ]
    counted = zip(*(counts for _, counts in parts), strict=True)
    return concatenate_datasets([encoded for encoded, _ in parts]), [sum(counts) for counts in counted]


def _encode_sentences(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: Config, what: str) -> Encoded:
    limit = config.train.max_length

    def some(part: Dataset) -> tuple[Dataset, Sequence[int]]:
        encoded, *counts = encode(part, tokenizer, limit)
        return encoded, counts

    encoded, (cut, empty) = _in_parts(rows, some)
    counts = {
        f"inputs are longer than train.max_length={limit} and were cut": cut,
        "inputs are empty for this tokenizer and were replaced by its end-of-text token": empty,
    }
    return encoded, _notices(rows, what, counts)


def _chats(rows: Dataset) -> bool:
    """Return True if the rows are conversations."""
    return "asked" in rows.column_names


def _encode_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: Config, what: str) -> Encoded:
    limit = config.train.max_length

    def some(part: Dataset) -> tuple[Dataset, Sequence[int]]:
        encoded, cut = (encode_chats if _chats(rows) else encode_pairs)(part, tokenizer, limit)
        return encoded, (cut.prompts, cut.completions)

    encoded, (prompts, completions) = _in_parts(rows, some)
    counts = {
        f"prompts were cut at their beginning: train.max_length={limit}": prompts,
        f"completions alone are longer and were cut at their end: train.max_length={limit}": completions,
    }
    return encoded, _notices(rows, what, counts)


def _encode_prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: Config, what: str) -> Encoded:
    """Encode prompts, cut so that prompt and generated text together fit in `train.max_length` positions."""
    limit = config.train.max_length - config.generation.max_new_tokens

    def some(part: Dataset) -> tuple[Dataset, Sequence[int]]:
        encoded, cut = (encode_questions if _chats(rows) else encode_prompts)(part, tokenizer, limit)
        return encoded, (cut.prompts,)

    encoded, (prompts,) = _in_parts(rows, some)
    told = f"prompts were cut at their beginning: train.max_length - generation.max_new_tokens = {limit}"
    return encoded, _notices(rows, what, {told: prompts})


def _smoothed_loss(smoothing: float) -> Loss | None:
    if not smoothing:
        return None

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        total = functional.cross_entropy(outputs.logits.float(), labels, reduction="sum", label_smoothing=smoothing)
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _metric(config: Config) -> dict[str, Any]:
    """Return the metrics configured for the user's own data; built-in tasks define their own."""
    return {"metric": config.data.metric} if config.data.metric else {}


def _check_classifier(config: Config, task: Task) -> None:
    if config.train.label_smoothing and task.kind != "classification":
        what = "a number" if task.kind == "regression" else "several labels per row"
        raise UserError(
            f"train.label_smoothing is for one label per row, but {task.name} predicts {what}. Set it to 0."
        )


def _check_generator(config: Config, task: Task) -> None:
    if config.train.head_learning_rate is not None:
        raise UserError(
            f"train.head_learning_rate is for a classifier's head, but {task.name} needs a model that generates text, "
            "which has no such head. Leave it empty."
        )
    if config.train.held_out:  # a held-out tenth of E2E would share its prompts (eight rows each)
        raise UserError(
            f"train.held_out is for classifiers, but {task.name} generates texts, and several of its rows may have "
            "the same prompt. Leave it at 0. The last epoch can be kept instead: train.select_epoch=last"
        )
    if task.primary == PERPLEXITY and config.train.select_epoch != "last":
        raise UserError(
            "The best epoch is the one with the highest first metric, but a low perplexity is better. Name another "
            "metric first, or keep the last epoch: -o train.select_epoch=last"
        )
    if config.generation.max_new_tokens >= config.train.max_length:
        raise UserError(
            f"generation.max_new_tokens={config.generation.max_new_tokens} leaves no room for a prompt in "
            f"train.max_length={config.train.max_length}. Raise the latter or lower the former."
        )


def _evaluate_texts(
    model: nn.Module,
    task: Task,
    rows: Dataset,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    way: Way | None,
    progress: Callable[[int, int], None] | None,
    journal: Path | None,
) -> Evaluation:
    """Generate and score texts, unless only perplexity is asked for, which needs none."""
    compared = tuple(name for name in task.metrics if name != PERPLEXITY)
    size = config.eval.batch_size
    found = Evaluation({}, [])
    if compared:
        settings, shown = config.generation, replace(task, metrics=compared)
        found = evaluate_generator(model, shown, rows, encoded, tokenizer, settings, size, way, progress, journal)
    if compared == task.metrics:
        return found
    answers, notices = _encode_pairs(rows, tokenizer, config, "evaluation, for perplexity:")
    metrics = {**found.metrics, PERPLEXITY: perplexity(model, answers, tokenizer, size, way)}
    return replace(found, metrics={name: metrics[name] for name in task.metrics if name in metrics}, notices=notices)


_CLASSIFIER = Kind(
    causal=False,
    scored_each_epoch=True,
    check=_check_classifier,
    encode_training=_encode_sentences,
    encode_evaluation=_encode_sentences,
    collate=collator,
    loss=_smoothed_loss,
    evaluate=lambda model, task, rows, encoded, tokenizer, config, way, progress, journal: evaluate_classifier(
        model, task, rows, encoded, collator(tokenizer), config.eval.batch_size, way, progress
    ),
    settings=_metric,
)
_GENERATOR = Kind(
    causal=True,
    scored_each_epoch=False,
    check=_check_generator,
    encode_training=_encode_pairs,
    encode_evaluation=_encode_prompts,
    collate=pair_collator,
    loss=token_loss,
    evaluate=_evaluate_texts,
    settings=lambda config: {"generation": vars(config.generation), **_metric(config)},
)
