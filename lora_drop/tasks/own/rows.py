"""Conversion of table rows to task rows: columns, strata, and the file that caches them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from lora_drop.files import ABANDONED_S, cache_root, file_digest, replacing, sweep, write_text
from lora_drop.tasks.base import quantile_strata
from lora_drop.tasks.own.chats import asked_and_answered
from lora_drop.tasks.own.reading import Reading
from lora_drop.tasks.own.values import number, several

BINS = 10
"""Number of strata for numbers."""


def features(reading: Reading) -> Features:
    """Return the columns of the task's rows."""
    pair = {"text_pair": Value("string")} if len(reading.texts) == 2 else {}
    if reading.kind == "generation":
        texts = ("messages", "asked") if reading.chat else ("prompt", "completion")
        return Features(
            {"id": Value("string"), **{name: Value("string") for name in texts}, "references": List(Value("string"))}
        )
    label = {"classification": Value("int64"), "regression": Value("float64"), "multilabel": List(Value("float32"))}
    return Features({"id": Value("string"), "text": Value("string"), **pair, "label": label[reading.kind]})


def example(reading: Reading, name: str, place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table as a row of the task."""
    if reading.chat is not None:
        messages = reading.conversation(place, row)
        asked, answer = asked_and_answered(messages)
        texts = {
            key: json.dumps(turns, ensure_ascii=False) for key, turns in (("messages", messages), ("asked", asked))
        }
        return {"id": name, **texts, "references": [answer]}
    target = reading.target(row)
    if reading.kind == "generation":
        return {"id": name, "prompt": reading.text(row)[0], "completion": target, "references": [target]}
    return {"id": name, **dict(zip(("text", "text_pair"), reading.text(row), strict=False)), "label": target}


def strata_of_rows(reading: Reading, rows: Dataset) -> list[str]:
    """Return the stratum of each row of the task."""
    return strata(reading, [None] * len(rows) if reading.kind == "generation" else _labels(reading, rows["label"]))


def _labels(reading: Reading, targets: Iterable[Any]) -> list[Any]:
    """Return the labels that `Reading.target` turned into these targets; numbers unchanged."""
    if reading.kind == "classification":
        return [reading.labels[index] for index in targets]
    if reading.kind == "multilabel":
        return [tuple(name for name, on in zip(reading.labels, row, strict=True) if on) for row in targets]
    return list(targets)


def strata(reading: Reading, labels: Sequence[Any]) -> list[str]:
    """Return the stratum of each row by its label: the class, the bin of a number, or the rarest of several labels.

    `labels` are the table's. Numbers may also be the task's, because standardising them does not change their bins.
    """
    if reading.kind == "classification":
        return [str(label) for label in labels]
    if reading.kind == "regression":
        return quantile_strata([number(label) or 0.0 for label in labels], BINS, "bin")
    return _rarest([several(label) for label in labels]) if reading.kind == "multilabel" else ["all"] * len(labels)


def _rarest(rows: Sequence[tuple[str, ...]]) -> list[str]:
    counts = Counter(name for names in rows for name in names)
    return [min(names, key=lambda name: (counts[name], name)) if names else "no label" for names in rows]


def kept(key: str, columns: Features, rows: Callable[[], Iterator[dict[str, Any]]]) -> Dataset:
    """Return rows as a memory-mapped file in the user's cache, written once; in memory if it cannot be written.

    The digest is in a file next to it: if the rows are damaged, they are written again.
    """
    root = cache_root()
    if root is None:
        return Dataset.from_list(list(rows()), features=columns)
    path = root / "rows" / f"{key}.arrow"
    seal = path.with_suffix(".sha256")
    try:
        if seal.read_bytes() == file_digest(path).encode():
            return Dataset.from_file(str(path))
    except (OSError, ValueError):  # missing or damaged
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, ABANDONED_S)
        with replacing(path) as written, ArrowWriter(features=columns, path=str(written)) as writer:
            for row in rows():
                writer.write(row)
            writer.finalize()
        write_text(seal, file_digest(path))
        return Dataset.from_file(str(path))
    except OSError:
        return Dataset.from_list(list(rows()), features=columns)
