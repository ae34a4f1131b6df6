"""Tokenise conversations with the tokenizer's chat template. Only the assistant's turns are learned."""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lora_drop.data.completions import IGNORED, Cut, end_of_text
from lora_drop.errors import UserError
from lora_drop.faults import foreign

Messages = list[dict[str, str]]
DATE = {
    **{"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"},
    **{"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM"},
}
"""Today, for templates that tell it to the model: the same text must give the same tokens on any day. It is the default
of Llama 3's template."""
TODAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('{code}', '{value}')" for code, value in DATE.items())
    + " }}{% endmacro %}"
)
"""A macro that takes the place of transformers' function of this name in a template."""


def encode_chats(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, Cut]:
    """Tokenise training rows.

    The template renders all turns as one text. In a turn of the assistant, everything after the template's answer
    prefix is learned, up to the end of the turn. A conversation that is too long loses its beginning; only a last
    answer that is too long by itself is cut at its end.

    Args:
        rows: rows with `messages`: turns as JSON, the last one the assistant's.
        tokenizer: the backbone's tokenizer.
        max_length: most tokens of a conversation.

    Returns:
        Rows with `input_ids`, `attention_mask`, and `labels`, which are IGNORED except for learned tokens; and the
        numbers of conversations that were cut.

    Raises:
        UserError: if there is no template, or if it rewrites earlier turns, so that answers cannot be found.
    """
    _check(tokenizer)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    prompts = completions = 0
    for name, text in zip(rows["id"], rows["messages"], strict=True):
        ids, labels, last = _learned(tokenizer, json.loads(text), name)
        if len(ids) > max_length:
            whole = len(ids) - last < max_length
            start = len(ids) - max_length if whole else last - 1
            ids, labels = ids[start : start + max_length], labels[start : start + max_length]
            prompts, completions = prompts + whole, completions + (not whole)
        columns["input_ids"].append(ids)
        columns["attention_mask"].append([1] * len(ids))
        columns["labels"].append(labels)
    return Dataset.from_dict(columns), Cut(prompts, completions)


def encode_questions(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, Cut]:
    """Tokenise evaluation rows: the turns in `asked` (JSON), followed by the template's answer prefix.

    Rows longer than `max_length` lose their beginning. Return rows with `input_ids` and `attention_mask`, and the
    number that were cut.
    """
    _check(tokenizer)
    texts = [_render(tokenizer, json.loads(text), True) for text in rows["asked"]]
    ids = [_tokens(tokenizer, text) for text in texts]
    cut = Cut(prompts=sum(len(row) > max_length for row in ids))
    ids = [row[-max_length:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}), cut


def _check(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            "Conversations need the tokenizer's chat template, but this backbone's tokenizer has none. Choose a model "
            "that was trained on conversations (packaged:smollm2-135m), or give columns prompt and completion."
        )


def _learned(tokenizer: PreTrainedTokenizerBase, messages: Messages, name: str) -> tuple[list[int], list[int], int]:
    """Return the tokens and labels of a conversation, and the position where its last answer begins."""
    whole = _render(tokenizer, messages, False)
    ids: list[int] = []
    labels: list[int] = []
    done = last = 0
    for number, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:number], True)
        after = _render(tokenizer, messages[: number + 1], False)
        if not (whole.startswith(before) and whole.startswith(after) and len(before) < len(after)):
            raise UserError(
                f"Row {name}: this tokenizer's chat template writes turn {number + 1} differently once other turns "
                "follow, so the tokens to be learned cannot be found. Give each answer its own row (prompt and "
                "completion)."
            )
        for text, learned in (
            (whole[done : len(before)], False),
            (_answer(tokenizer, whole[len(before) : len(after)]), True),
        ):
            tokens = _tokens(tokenizer, text)
            last = len(ids)
            ids += tokens
            labels += tokens if learned else [IGNORED] * len(tokens)
            done += len(text)
    if ids[-1] != end_of_text(tokenizer):  # a template without an end of turn: the model would never stop
        ids.append(end_of_text(tokenizer))
        labels.append(ids[-1])
    return ids, labels, last


def _answer(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return an answer up to its end of turn, without the line end after it, which the model should not write."""
    end = str(tokenizer.eos_token)
    return text[: text.rindex(end) + len(end)] if end in text else text


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, asks: bool) -> str:
    with foreign("The chat template of the backbone's tokenizer refuses a conversation"):  # such as a system role
        template = tokenizer.get_chat_template()
        template = TODAY + template if "strftime_now" in template else template
        rendered: Any = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=asks
        )
    return str(rendered)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text, to which the template has already added all special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]
