"""Selection of the columns to read: the ones configured, or the ones that names and contents suggest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError
from lora_drop.tasks.own.chats import ALPACA, OPENAI, SHAREGPT, Chat
from lora_drop.tasks.own.reading import FIELD, Reading
from lora_drop.tasks.own.tables import Table
from lora_drop.tasks.own.values import missing

TEXT_NAMES = ("text", "review", "review_text", "sentence", "content", "body", "comment", "message", "tweet", "document")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("question", "sentence"),
)
LABEL_NAMES = ("label", "labels", "stars", "rating", "sentiment", "class", "category", "target", "score", "tags", "y")
SEEN_ROWS = 200
"""Number of rows examined to find a column of texts."""


def find_columns(data: DataConfig, table: Table) -> Reading:
    """Return the reading with configured columns, or with those that names and contents suggest. Its kind may be auto.

    Raises:
        UserError: For a column that does not exist, or if none can be found.
    """
    written = _written_columns(data, table)
    if written is not None:
        return written
    template = data.template or ""
    texts = data.text or ()
    if len(texts) == 1 and texts[0] not in table.columns and FIELD.search(texts[0]):
        template, texts = texts[0], ()
    if template and texts:
        raise UserError("data.text and data.template exclude each other: leave one out.")
    if len(texts) > 2:
        raise UserError(
            f"data.text names {len(texts)} columns, but takes one, or two for a pair. For more, use a template: "
            f'--template "{" ".join("{" + name + "}" for name in texts)}"'
        )
    for name in (*texts, *FIELD.findall(template)):
        table.column(name, "data.template" if template else "data.text (--text)")
    if template and not FIELD.search(template):
        raise UserError(f"The template {template!r} has no column in braces, such as {{{table.columns[0]}}}.")
    taken = texts or tuple(FIELD.findall(template))
    if data.label in taken:
        raise UserError(f"The column {data.label!r} is both the text and the label of {table.name}.")
    label = table.column(data.label, "data.label (--label)") if data.label else _label_column(table, taken)
    texts = texts if taken else _text_columns(table, label)
    if data.kind == "generation" and texts:  # a line end separates the prompt from the completion
        template, texts = "".join(f"{{{name}}}\n" for name in texts), ()
    return Reading(data.kind, texts, template, label)


def chat_reading(chat: Chat, table: Table) -> Reading:
    """Return a reading for conversations. Raises UserError for a column that does not exist."""
    if chat.columns == ALPACA and ALPACA["query"] not in table.columns:  # it is optional
        chat = replace(chat, columns={role: name for role, name in ALPACA.items() if role != "query"})
    for role, name in chat.columns.items():
        table.column(name, f"{role!r} in dataset_info.json")
    return Reading("generation", (), "", "", chat=chat)


def _written_columns(data: DataConfig, table: Table) -> Reading | None:
    """Return the reading of a table with the usual column names for text generation; None for other tables."""
    has = set(table.columns)
    if data.kind not in ("auto", "generation") or data.text or data.label:
        return None
    for column, tags in (("messages", OPENAI), ("conversations", SHAREGPT)):
        if column in has and not data.template:
            return Reading("generation", (), "", "", chat=Chat({"messages": column}, tags))
    if {"prompt", "completion"} <= has and not data.template and _lists(table, "prompt"):  # TRL's conversational form
        return Reading("generation", (), "", "", chat=Chat({"messages": "prompt", "completion": "completion"}))
    for prompt, label in (("prompt", "completion"), ("instruction", "output")):
        if {prompt, label} <= has:
            alpaca = "{instruction}\n{input}\n" if "input" in has else "{instruction}\n"
            template = data.template or (alpaca if prompt == "instruction" else "{prompt}")
            for name in FIELD.findall(template):
                table.column(name, "data.template")
            return Reading("generation", (), template, label)
    return None


def _lists(table: Table, column: str) -> bool:
    """Return True if the first cell of a column that has a value is a list."""
    cells = (row[column] for _, row in islice(table.rows(), SEEN_ROWS) if not missing(row.get(column)))
    return isinstance(next(cells, None), list)


def _label_column(table: Table, texts: Sequence[str]) -> str:
    left = [name for name in table.columns if name not in texts]
    named = [name for wanted in LABEL_NAMES for name in left if name.lower() == wanted]
    if named or (texts and len(left) == 1):
        return (named or left)[0]
    raise UserError(
        f"Which column of {table.name} is to be predicted? Name it with --label. Columns: {', '.join(table.columns)}"
    )


def _text_columns(table: Table, label: str) -> tuple[str, ...]:
    left = [name for name in table.columns if name != label]
    lower = {name.lower(): name for name in left}
    for pair in PAIR_NAMES:
        if all(name in lower for name in pair):
            return tuple(lower[name] for name in pair)
    for name in TEXT_NAMES:
        if name in lower:
            return (lower[name],)
    lengths: Counter[str] = Counter()
    for _, row in islice(table.rows(), SEEN_ROWS):
        lengths.update({name: len(row[name]) for name in left if isinstance(row.get(name), str)})
    if not lengths:
        raise UserError(
            f"Which column of {table.name} is the text? Name it with --text. Columns: {', '.join(table.columns)}"
        )
    return (lengths.most_common(1)[0][0],)
