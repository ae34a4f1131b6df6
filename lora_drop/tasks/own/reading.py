"""The reading of a table: extraction of texts and labels from its rows, and the kind of task that the labels imply."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, pstdev
from typing import Any

from lora_drop.errors import UserError, first_three
from lora_drop.tasks.files import HALF
from lora_drop.tasks.own.chats import Chat, Messages, asked_and_answered
from lora_drop.tasks.own.tables import Row, Table
from lora_drop.tasks.own.values import (
    MARKS,
    SEPARATOR,
    Label,
    as_label,
    as_text,
    kind_of,
    marks_among_numbers,
    missing,
    number,
    ordered,
    same_class,
    several,
)

MANY, SENTENCE = 20, 5
"""More than MANY labels are refused as classes if they average more than SENTENCE words or are mostly unique."""
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
WRITTEN_NUMBER = re.compile(r"[+-]?[$€£]?\s?[+-]?\d[\d.,]*\s?[%$€£]?")
"""A number with a sign of money, percent, or thousands."""
HOT = {"0", "1", "0.0", "1.0", "true", "false"}
"""Texts of the cells of a multi-hot vector."""
FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Reading:
    """Settings for reading the rows of a table."""

    kind: str
    texts: tuple[str, ...]
    """The text column, or two; empty if there is a template."""
    template: str
    label: str
    labels: tuple[str, ...] = ()
    """Names of the classes in index order; empty for regression and generation."""
    chat: Chat | None = None
    """Format of conversations, if rows are conversations."""
    center: float = 0.0
    """For regression: the mean over the training file."""
    spread: float = 1.0
    """For regression: the standard deviation over the training file."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read, except the label."""
        if self.chat is not None:
            return self.chat.needed
        return list(self.texts) or FIELD.findall(self.template)

    def check_cells(self, place: str, row: Row) -> None:
        """Raise UserError for a list or an object instead of a text, and for half a character, which no tokenizer takes."""
        for name in (*self.texts, *([self.label] if self.kind == "generation" else ())):
            if isinstance(row.get(name), (list, dict)):
                what = "a list" if isinstance(row[name], list) else "an object"
                raise UserError(f"{place}, column {name!r}: a text is expected, not {what}")
        if isinstance(row.get(self.label), dict):
            raise UserError(f"{place}, column {self.label!r}: a label is expected, not an object")
        for name in (*self.columns, self.label, *(self.chat.columns.values() if self.chat else ())):
            if isinstance(row.get(name), bytes):
                raise UserError(f"{place}, column {name!r}: a text is expected, not bytes that are no UTF-8")
            if HALF.search(as_text(row.get(name))):
                raise UserError(f"{place}, column {name!r}: half a character (a lone surrogate such as \\ud83d)")

    def conversation(self, place: str, row: Row) -> Messages:
        """Return the turns of a conversation. Raises UserError naming the place of a malformed turn."""
        assert self.chat is not None
        return self.chat.messages(place, row)

    def answer(self, place: str, row: Row) -> Label | None:
        """Return the label of a row, as class names if these are known; for a conversation, its last answer."""
        if self.chat is not None:
            return asked_and_answered(self.conversation(place, row))[1] or None
        if self.kind == "generation":
            return as_text(row.get(self.label)) if not missing(row.get(self.label)) else None
        return self.named(as_label(row.get(self.label)))

    def named(self, label: Label | None) -> Label | None:
        """Return a label in the same form with the names of its classes: if these are 1 and 2, 1.0 becomes 1."""
        if label is None or not self.labels:
            return label
        if isinstance(label, tuple):
            return tuple(same_class(name, self.labels) for name in label)
        if self.kind == "multilabel":
            return SEPARATOR.join(same_class(name.strip(), self.labels) for name in label.split(SEPARATOR))
        return same_class(label, self.labels)

    def text(self, row: Row) -> tuple[str, ...]:
        """Return the text of a row, or both texts of a pair."""
        if self.template:
            return (FIELD.sub(lambda found: as_text(row.get(found[1])), self.template),)
        return tuple(as_text(row.get(name)) for name in self.texts)

    def fingerprint(self, place: str, row: Row) -> bytes:
        """Return a digest of the text of a row; for a conversation, of all turns before the last answer."""
        read = asked_and_answered(self.conversation(place, row))[0] if self.chat is not None else self.text(row)
        return hashlib.blake2b(json.dumps(read).encode("utf-8", "surrogatepass"), digest_size=8).digest()

    def empty(self, row: Row) -> bool:
        """Return True for a row without any text."""
        names = self.columns if self.chat is None else self.chat.asked
        return all(missing(row.get(name)) for name in names)

    def target(self, row: Row) -> Any:
        """Return the target to predict: the index of a class, a number, one number per class, or a text."""
        label = self.named(as_label(row.get(self.label)))
        if self.kind == "classification":
            return self.labels.index(str(label))
        if self.kind == "multilabel":
            return [float(name in several(label)) for name in self.labels]
        if self.kind == "regression":
            return ((number(label) or 0.0) - self.center) / self.spread
        return as_text(row.get(self.label))

    def record(self) -> dict[str, Any]:
        """Return the reading as JSON-like values."""
        chat = {key: dict(value) for key, value in vars(self.chat).items()} if self.chat else None
        return {**vars(self), "texts": list(self.texts), "labels": list(self.labels), "chat": chat}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Reading:
        """Return the reading from the values that `record` returned."""
        chat = Chat(**record["chat"]) if record["chat"] else None
        return cls(**{**record, "texts": tuple(record["texts"]), "labels": tuple(record["labels"]), "chat": chat})


@dataclass
class Survey:
    """The result of one pass over a table."""

    labels: list[Label | None] = field(default_factory=list)
    """Labels of the rows used, in order."""
    used: list[int] = field(default_factory=list)
    """Indices of these rows in the table."""
    empty: list[str] = field(default_factory=list)
    """Places of rows without text."""
    unlabelled: list[str] = field(default_factory=list)
    """Places of rows with text but without label."""
    texts: list[bytes] = field(default_factory=list)
    """Fingerprints of the texts of the rows used, to find equal texts without keeping them."""
    rows: int = 0

    @property
    def counts(self) -> Counter[Label]:
        """Number of rows with each label."""
        return Counter(label for label in self.labels if label is not None)


def survey(table: Table, reading: Reading) -> Survey:
    """Read a table once. Raises UserError naming the place of a cell that is no text, or of a malformed turn."""
    found = Survey()
    for place, row in table.rows():
        reading.check_cells(place, row)
        label = reading.answer(place, row)
        if reading.empty(row):
            found.empty.append(place)
        elif label is None and reading.kind != "multilabel":
            found.unlabelled.append(place)
        else:
            found.labels.append(label)
            found.used.append(found.rows)
            found.texts.append(reading.fingerprint(place, row))
        found.rows += 1
    return found


def some_places(places: Sequence[str], what: str, split: str = "") -> str:
    """Return a phrase with the number of rows that have `what`, and the places of the first ones."""
    first = first_three(places)
    some = f"{len(places):,} {split} row".replace("  ", " ")
    return f"{some} has {what} ({first})" if len(places) == 1 else f"{some}s have {what} ({first})"


def place_where(table: Table, reading: Reading, holds: Callable[[Label | None], bool]) -> str:
    """Return the place of the first row with a label that meets a condition, with its column and value."""
    for place, row in table.rows():
        label = reading.named(as_label(row.get(reading.label)))
        if holds(label) and not reading.empty(row):
            return f"{place}, column {reading.label!r}: {as_text(row.get(reading.label))!r}"
    return table.name


def with_kind(reading: Reading, table: Table, found: Survey) -> Reading:
    """Return the reading completed with the kind and the labels found in the rows.

    Raises:
        UserError: For rows that do not fit the kind, naming file, line and column.
    """
    counts = found.counts
    if not counts:
        left_out = f" ({len(found.empty)} have no text, {len(found.unlabelled)} no label)" if found.rows else ""
        wanted = f"a label in {reading.label!r}" if reading.chat is None else "an answer of the assistant"
        raise UserError(f"{table.name}: none of {found.rows} rows has text and {wanted}{left_out}.")
    marks = marks_among_numbers(counts) if reading.kind == "auto" else []
    if marks:
        place = place_where(table, reading, lambda label: label in marks)
        raise UserError(
            f"{place}, and the other labels are numbers. Leave such cells empty (their rows are then left out), or, "
            "if it is a class, use --kind classification."
        )
    kind = kind_of(counts) if reading.kind == "auto" else reading.kind
    reading = replace(reading, kind=kind)
    if kind == "generation":
        return reading
    if kind == "regression":
        wrong = [label for label in counts if number(label) is None]
        if wrong:
            place = place_where(table, reading, lambda label: label in wrong)
            raise UserError(f"{place} is not a number, but the kind is regression.")
        if len(counts) == 1:
            raise UserError(f"{table.name}: all rows have the number {next(iter(counts))} in {reading.label!r}.")
        values = [number(label) or 0.0 for label in found.labels]
        return replace(reading, center=mean(values), spread=pstdev(values) or 1.0)
    if kind == "classification" and any(isinstance(label, tuple) for label in counts):
        place = place_where(table, reading, lambda label: isinstance(label, tuple))
        raise UserError(f"{place} is a list, but the kind is classification. Use --kind multilabel.")
    if kind == "multilabel" and _multi_hot(counts):
        raise UserError(
            f"{table.name}: the lists in {reading.label!r} have a 0 or 1 for each class. Write the names of the classes "
            'that hold instead, such as ["angry", "rude"] or angry;rude.'
        )
    names = ordered(name for label in counts for name in (several(label) if kind == "multilabel" else (str(label),)))
    _check_classes(reading, table, counts, names)
    return replace(reading, labels=names)


def surprise(reading: Reading, table: Table, counts: Counter[Label]) -> str:
    """Return a warning if the detected kind of the labels may be wrong; empty if all is as expected."""
    lists = [label for label in counts if isinstance(label, tuple) or SEPARATOR in label]
    if reading.kind == "multilabel" and sum(counts[label] for label in lists) < counts.total() / 20:
        place = place_where(table, reading, lambda label: label in lists)
        return (
            f"rows are taken to have several labels ({place}), though few do. If the {SEPARATOR!r} is part of a name, "
            "use --kind classification"
        )
    if reading.kind != "classification":
        return ""
    names = [str(label) for label in counts]
    odd = [name for name in names if number(name) is None]
    if odd and all(DECIMAL_COMMA.fullmatch(name) or number(name) is not None for name in names):
        return f"labels such as {odd[0]} are taken for classes. To be read as numbers: {_plainly(odd)}"
    if odd and all(WRITTEN_NUMBER.fullmatch(name) for name in names):
        return (
            f"labels such as {odd[0]} are taken for classes. To be read as numbers, they must be written with digits and "
            "a decimal point alone"
        )
    marks = [name for name in names if name.lower() in MARKS]
    if marks:
        return f"{marks[0]!r} is taken for a class. If it means that the label is missing, leave these cells empty"
    cased: dict[str, str] = {}
    for name in names:
        other = cased.setdefault(name.casefold(), name)
        if other != name:
            return f"{other!r} and {name!r} are taken for two classes"
    return ""


def _plainly(labels: Sequence[str]) -> str:
    """Return how to write numbers with a comma, which is a decimal point or separates the thousands."""
    one = labels[0]
    if all(re.fullmatch(r"[+-]?\d{1,3},\d{3}", label) for label in labels):
        return f"write {one} as {one.replace(',', '')}, or, if the comma is a decimal point, as {one.replace(',', '.')}"
    return f"write {one} as {one.replace(',', '.')}, with a decimal point"


def _multi_hot(labels: Collection[Label]) -> bool:
    """Return True if all labels are lists of one length, at least two, that hold only zeros and ones."""
    lists = [label for label in labels if isinstance(label, tuple)]
    cells = {cell.lower() for label in lists for cell in label}
    alike = len(lists) == len(labels) and len(set(map(len, lists))) == 1 and len(lists[0]) > 1
    return alike and cells <= HOT


def _words(text: str) -> int:
    return len(text.split())


def _check_classes(reading: Reading, table: Table, counts: Counter[Label], names: Sequence[str]) -> None:
    total = counts.total()
    if len(names) < 2 and reading.kind == "classification":
        raise UserError(f"{table.name}: all {total} rows have the label {names[0]!r} in {reading.label!r}.")
    if not names:
        raise UserError(f"{table.name}: no row has a label in {reading.label!r}.")
    if len(names) <= MANY or (len(names) <= total // 2 and mean(map(_words, names)) <= SENTENCE):
        return
    words = [label for label in counts if number(label) is None]
    commas = [label for label in words if DECIMAL_COMMA.fullmatch(str(label))]
    hint = "Check that it is the label. For free text use --kind generation"
    if mean(_words(name) for name in names) > SENTENCE and reading.texts:
        hint = (
            f"Text and label may be swapped: try --text {reading.label} --label {reading.texts[0]}. For texts to be "
            "generated use --kind generation"
        )
    elif commas and len(commas) == len(words):
        hint = f"Numbers need a decimal point, not a comma: {_plainly(list(map(str, commas)))}"
    elif words and sum(counts[label] for label in words) < total / 2:
        place = place_where(table, reading, lambda label: label in words)
        hint = (
            f"Most are numbers, but not {place}. If all should be numbers, correct that row and use --kind regression"
        )
    elif not words:
        hint = "For whole numbers that are amounts use --kind regression"
    raise UserError(
        f"{table.name}: the column {reading.label!r} has {len(names):,} different labels in {total:,} rows. {hint}."
    )
