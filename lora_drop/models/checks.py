"""Checks for faults of a backbone that training would not reveal, made on loading, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_drop.errors import UserError
from lora_drop.methods.base import HEADS
from lora_drop.pruning.places import in_block
from lora_drop.tasks.base import Task

Notice = Callable[[str], None]


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, notice: Notice) -> None:
    """Make sure that the model knows every token of its tokenizer, and that there is a padding token.

    A padding token that is missing, or has no row in the embedding, is replaced by the one in the model's
    configuration, or else by the end-of-text token. Padding is masked, so any row of the embedding will do.

    Raises:
        UserError: if the tokenizer has no vocabulary, no maximum length that is a number, more tokens than the
            embedding has rows, or no token to pad with.
    """
    rows = config.get_text_config().vocab_size
    if not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(
            f"The tokenizer of {name} has model_max_length = {tokenizer.model_max_length!r}, which is not a number. "
            "Correct its tokenizer_config.json."
        )
    vocabulary = tokenizer.get_vocab()
    if not set(vocabulary) - set(tokenizer.all_special_tokens) and len(vocabulary) < rows:
        raise UserError(
            f"The backbone {name} has no vocabulary: every word would be unknown. Save its tokenizer there, too (tokenizer.save_pretrained)."
        )
    padding = tokenizer.pad_token_id
    if padding is None or padding >= rows:
        _choose_padding(name, tokenizer, config, notice)
    by_number = sorted(vocabulary, key=lambda token: vocabulary[token])
    unknown = [token for token in by_number if vocabulary[token] >= rows and vocabulary[token] != padding]
    if unknown:
        raise UserError(
            f"The tokenizer of {name} has {len(unknown)} more tokens than the model's embedding has rows ({rows}), "
            f"such as {unknown[0]!r}. Save the model again after model.resize_token_embeddings(len(tokenizer))."
        )


def _choose_padding(name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, notice: Notice) -> None:
    rows = config.get_text_config().vocab_size
    candidates = (getattr(config, "pad_token_id", None), tokenizer.eos_token_id)
    usable = [number for number in candidates if isinstance(number, int) and 0 <= number < rows]
    token = tokenizer.convert_ids_to_tokens(usable[0]) if usable else None
    if token is None:
        raise UserError(
            f"The tokenizer of {name} has neither a padding nor an end-of-text token. Set one (tokenizer.pad_token = …) and save it again."
        )
    if tokenizer.pad_token is not None:
        notice(
            f"the padding token {tokenizer.pad_token} of {name} has no row in the model's embedding; {token} is used instead"
        )
    tokenizer.pad_token = token


def check_weights(
    name: str, model: PreTrainedModel, report: Mapping[str, Any], task: Task, notice: Notice
) -> list[str]:
    """Check the weights that transformers did not load. Return modules with fresh weights (a head, DeBERTa's pooler).

    Args:
        name: name of the backbone, for messages.
        model: the loaded model; mismatched sizes were ignored.
        report: transformers' `missing_keys` and `mismatched_keys`.
        task: decides the size of a classifier's head, and whether there must be a language model's.
        notice: called if a head of another size is replaced.

    Raises:
        UserError: if weights of the model below its head are missing (other than a pooler's), or the head of a
            language model that is to write texts, if any weight outside the head has another shape, or if a weight is
            NaN or infinite.
    """
    missing: list[str] = sorted(report["missing_keys"])
    mismatched = {key: tuple(found) for key, found, _ in report["mismatched_keys"]}
    embeddings = _parameters_of(model, model.get_input_embeddings())
    body = f"{model.base_model_prefix}."
    lost = [
        key
        for key in missing
        if in_block(key) or key in embeddings or (key.startswith(body) and not key.startswith(f"{body}pooler."))
    ]
    if lost:
        raise UserError(
            f"The weights of {name} are incomplete: {len(lost)} tensors of its layers, norms or embeddings are missing, "
            f"such as {lost[0]}."
        )
    if task.kind == "generation":
        _check_head(name, model, missing)
    wrong = [key for key in mismatched if key.split(".")[0] not in HEADS]
    if wrong:
        raise UserError(
            f"The weights of {name} do not fit its config.json: {wrong[0]} has the shape {mismatched[wrong[0]]} in the file, "
            f"{tuple(model.get_parameter(wrong[0]).shape)} by the configuration."
        )
    if mismatched:
        theirs = next(iter(mismatched.values()))[0]
        notice(
            f"{name} comes with a head of {theirs} outputs; this task needs {task.outputs}, so a new head is initialised"
        )
    _check_finite(name, model.named_parameters())
    return sorted({key.rpartition(".")[0] for key in (*missing, *mismatched)})


def _check_head(name: str, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raise UserError if the head that writes texts would be random. One tied to the embeddings is never missing."""
    if _parameters_of(model, model.get_output_embeddings()) & set(missing):
        raise UserError(
            f"{name} has no language-model head, without which it cannot write texts. Use a checkpoint that was saved "
            f"with one ({type(model).__name__}); those of a classifier and of AutoModel are saved without."
        )


def _check_finite(name: str, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    for key, parameter in parameters:
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach().abs().amax())):
            raise UserError(
                f"The weights of {name} hold NaN or infinity ({key}). Get the file again, or another checkpoint."
            )


def _parameters_of(model: nn.Module, part: nn.Module | None) -> set[str]:
    inside = {id(parameter) for parameter in part.parameters()} if part is not None else set()
    return {key for key, parameter in model.named_parameters() if id(parameter) in inside}


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Raise UserError if the model (its shapes are enough) has fewer positions than `max_length`."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    for name, module in model.named_modules():
        # RoBERTa and its relatives (XLM-R, CamemBERT, MPNet, Data2Vec, Longformer) count from the padding's id + 1
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    if 0 < positions < max_length:
        raise UserError(f"train.max_length={max_length} is more than this backbone's {positions} positions. Lower it.")
