"""The reading of a table: which columns are text, which is the label, and what kind of task that makes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError
from lora_drop.tasks.own.chats import ALPACA, OPENAI, SHAREGPT, Chat, Messages, asked_and_answered
from lora_drop.tasks.own.tables import Row, Table
from lora_drop.tasks.own.values import Label, as_label, as_text, kind_of, missing, number, ordered, several

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
FIELD = re.compile(r"\{([^{}]+)\}")
SEEN_ROWS = 200
"""Rows by which a column of texts is recognised."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a table are read."""

    kind: str
    texts: tuple[str, ...]
    """The column that is read, or two; empty where a template is."""
    template: str
    label: str
    labels: tuple[str, ...] = ()
    """Names of the classes in index order; empty for numbers and for written texts."""
    chat: Chat | None = None
    """Of rows that are conversations: how they hold it."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read, without the label."""
        if self.chat is not None:
            return [self.chat.columns[name] for name in ("messages", "prompt") if name in self.chat.columns]
        return list(self.texts) or FIELD.findall(self.template)

    def conversation(self, place: str, row: Row) -> Messages:
        """Return the turns of a row that is a conversation. Raises UserError naming the place of a fault."""
        assert self.chat is not None
        return self.chat.messages(place, row)

    def answer(self, place: str, row: Row) -> Label | None:
        """Return the label of a row as it is written; of a conversation, its last answer."""
        if self.chat is not None:
            return asked_and_answered(self.conversation(place, row))[1] or None
        if self.kind == "generation":
            return as_text(row.get(self.label)) if not missing(row.get(self.label)) else None
        return as_label(row.get(self.label))

    def text(self, row: Row) -> tuple[str, ...]:
        """Return the text of a row, or the two of a pair."""
        if self.template:
            return (FIELD.sub(lambda found: as_text(row.get(found[1])), self.template),)
        return tuple(as_text(row.get(name)) for name in self.texts)

    def empty(self, row: Row) -> bool:
        """Return True for a row without any text."""
        return all(missing(row.get(name)) for name in self.columns)

    def target(self, row: Row) -> Any:
        """Return what is to be predicted: the index of a class, a number, one number per class, or a text."""
        label = as_label(row.get(self.label))
        if self.kind == "classification":
            return self.labels.index(str(label))
        if self.kind == "multilabel":
            return [float(name in several(label)) for name in self.labels]
        return number(label) if self.kind == "regression" else as_text(row.get(self.label))

    def record(self) -> dict[str, Any]:
        """Return the reading as JSON-like values."""
        chat = {key: dict(value) for key, value in vars(self.chat).items()} if self.chat else None
        return {**vars(self), "texts": list(self.texts), "labels": list(self.labels), "chat": chat}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Reading:
        """Return the reading that `record` gave."""
        chat = Chat(**record["chat"]) if record["chat"] else None
        return cls(**{**record, "texts": tuple(record["texts"]), "labels": tuple(record["labels"]), "chat": chat})


@dataclass
class Survey:
    """All that one pass over a table finds."""

    labels: list[Label | None] = field(default_factory=list)
    """Of the rows that are used, in order."""
    used: list[int] = field(default_factory=list)
    """Their numbers in the table."""
    empty: list[str] = field(default_factory=list)
    """Places of rows without text."""
    unlabelled: list[str] = field(default_factory=list)
    """Places of rows with text and without label."""
    rows: int = 0

    @property
    def counts(self) -> Counter[Label]:
        """How many rows have each label."""
        return Counter(label for label in self.labels if label is not None)


def survey(table: Table, reading: Reading) -> Survey:
    """Read a table once."""
    found = Survey()
    for place, row in table.rows():
        label = reading.answer(place, row)
        if reading.empty(row):
            found.empty.append(place)
        elif label is None and reading.kind != "multilabel":
            found.unlabelled.append(place)
        else:
            found.labels.append(label)
            found.used.append(found.rows)
        found.rows += 1
    return found


def place_where(table: Table, reading: Reading, holds: Callable[[Label | None], bool]) -> str:
    """Return the place of the first row whose label fulfils a condition, with its column and value."""
    for place, row in table.rows():
        label = as_label(row.get(reading.label))
        if holds(label) and not reading.empty(row):
            return f"{place}, column {reading.label!r}: {as_text(row.get(reading.label))!r}"
    return table.name


def find_columns(data: DataConfig, table: Table) -> Reading:
    """Return the columns to read, those that are named or those that names and contents suggest; the kind may be auto.

    Raises:
        UserError: for a column that does not exist, and where none can be found.
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
            f"data.text names {len(texts)} columns: one, or two for a pair. More go into a template: "
            f'--template "{" ".join("{" + name + "}" for name in texts)}"'
        )
    for name in (*texts, *FIELD.findall(template)):
        table.column(name, "data.template" if template else "data.text (--text)")
    if template and not FIELD.search(template):
        raise UserError(f"The template {template!r} has no column in braces, such as {{{table.columns[0]}}}.")
    taken = texts or tuple(FIELD.findall(template))
    label = table.column(data.label, "data.label (--label)") if data.label else _label_column(table, taken)
    texts = texts if taken else _text_columns(table, label)
    if data.kind == "generation" and texts:  # a line end parts what is read from what is written
        template, texts = "".join(f"{{{name}}}\n" for name in texts), ()
    return Reading(data.kind, texts, template, label)


def chat_reading(chat: Chat, table: Table) -> Reading:
    """Return the reading of conversations. Raises UserError for a column that does not exist."""
    if chat.columns == ALPACA and ALPACA["query"] not in table.columns:  # it is there where a question needs it
        chat = replace(chat, columns={role: name for role, name in ALPACA.items() if role != "query"})
    for role, name in chat.columns.items():
        table.column(name, f"{role!r} in dataset_info.json")
    return Reading("generation", (), "", "", chat=chat)


def _written_columns(data: DataConfig, table: Table) -> Reading | None:
    """Return the reading of a table whose columns have the usual names of texts to be written; else None."""
    has = set(table.columns)
    if data.kind not in ("auto", "generation") or data.text or data.label:
        return None
    for column, tags in (("messages", OPENAI), ("conversations", SHAREGPT)):
        if column in has and not data.template:
            return Reading("generation", (), "", "", chat=Chat({"messages": column}, tags))
    for prompt, label in (("prompt", "completion"), ("instruction", "output")):
        if {prompt, label} <= has:
            alpaca = "{instruction}\n{input}\n" if "input" in has else "{instruction}\n"
            template = data.template or (alpaca if prompt == "instruction" else "{prompt}")
            for name in FIELD.findall(template):
                table.column(name, "data.template")
            return Reading("generation", (), template, label)
    return None


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


def with_kind(reading: Reading, table: Table, found: Survey) -> Reading:
    """Return the reading with the kind and the labels that the rows have.

    Raises:
        UserError: for rows that do not suit the kind, naming file, line and column.
    """
    counts = found.counts
    if not counts:
        left_out = f" ({len(found.empty)} have no text, {len(found.unlabelled)} no label)" if found.rows else ""
        raise UserError(f"{table.name}: none of {found.rows} rows has text and a label in {reading.label!r}{left_out}.")
    kind = kind_of(counts) if reading.kind == "auto" else reading.kind
    reading = replace(reading, kind=kind)
    if kind == "generation":
        return reading
    if kind == "regression":
        wrong = [label for label in counts if number(label) is None]
        if wrong:
            place = place_where(table, reading, lambda label: label in wrong)
            raise UserError(f"{place} is not a number, and kind is regression.")
        return reading
    if kind == "classification" and any(isinstance(label, tuple) for label in counts):
        place = place_where(table, reading, lambda label: isinstance(label, tuple))
        raise UserError(f"{place} is a list, and kind is classification. Use --kind multilabel.")
    names = ordered(name for label in counts for name in (several(label) if kind == "multilabel" else (str(label),)))
    _check_classes(reading, table, counts, names)
    return replace(reading, labels=names)


def _check_classes(reading: Reading, table: Table, counts: Counter[Label], names: Sequence[str]) -> None:
    total = counts.total()
    if len(names) < 2 and reading.kind == "classification":
        raise UserError(f"{table.name}: all {total} rows have the label {names[0]!r} in {reading.label!r}.")
    if not names:
        raise UserError(f"{table.name}: no row has a label in {reading.label!r}.")
    if len(names) <= max(20, total // 2):
        return
    words = [label for label in counts if number(label) is None]
    hint = "Is it the label? For free text use --kind generation"
    if words and sum(counts[label] for label in words) < total / 2:
        place = place_where(table, reading, lambda label: label in words)
        hint = f"Most are numbers, but not {place}. For numbers mend that row, or use --kind regression"
    elif not words:
        hint = "For whole numbers that are amounts use --kind regression"
    raise UserError(
        f"{table.name}: the column {reading.label!r} has {len(names):,} different labels in {total:,} rows. {hint}."
    )
