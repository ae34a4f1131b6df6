"""Values of cells: as text, as labels, as numbers."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

Label = str | tuple[str, ...]
"""A label as it is written; several where the cell holds a list."""
WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
"""A whole number, also as pandas writes it in a column that lacks a value: 1.0."""
SEPARATOR = ";"
MARKS = ("na", "n/a", "nan", "null", "none", "inf", "-inf")
"""What programs write where there is no number."""


def missing(value: Any) -> bool:
    """Return True for a cell that holds nothing: empty, blanks, null, NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """Return a cell as text: nothing as an empty one, what JSON has as JSON writes it, a date or a decimal as Python does."""
    if missing(value):
        return value if isinstance(value, str) else ""
    in_json = isinstance(value, (bool, int, float, list, tuple, dict))
    return json.dumps(value, ensure_ascii=False, default=str) if in_json else str(value)


def as_label(value: Any) -> Label | None:
    """Return a cell as a label, or as several where it holds a list (also one written out); None if it is empty."""
    if isinstance(value, (list, tuple)):
        return tuple(as_text(item).strip() for item in value)
    if missing(value):
        return None
    text = as_text(value).strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            items = ast.literal_eval(text)  # literals alone: nothing is executed
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # no literal, or nested too deeply
            return text
        return tuple(str(item).strip() for item in items)
    return text


def several(label: Label | None) -> tuple[str, ...]:
    """Return the labels of a row that may have any number: a list, or `a;b`."""
    parts = label if isinstance(label, tuple) else (label or "").split(SEPARATOR)
    return tuple(part.strip() for part in parts if part.strip())


def number(label: Label | None) -> float | None:
    """Return a label as a finite number; None if it is not one."""
    try:
        value = float(label)  # type: ignore[arg-type]  # a tuple is a TypeError
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def marks_among_numbers(labels: Collection[Label]) -> list[Label]:
    """Return labels that say that there is none, where all others are numbers."""
    others = [label for label in labels if number(label) is None]
    return others if len(others) < len(labels) and all(str(label).lower() in MARKS for label in others) else []


def kind_of(labels: Iterable[Label]) -> str:
    """Return the kind of task that labels (at least one) are of."""
    labels = list(labels)
    if any(isinstance(label, tuple) or SEPARATOR in label for label in labels):
        return "multilabel"
    if all(WHOLE.fullmatch(str(label)) for label in labels) or any(number(label) is None for label in labels):
        return "classification"
    return "regression"


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return different names in order: texts by the alphabet; whole numbers by size, and 1.0 as 1."""
    names = set(names)
    if not _all_whole(names):
        return tuple(sorted(names))
    return tuple(sorted(set(map(_whole, names)), key=lambda name: (float(name), name)))


def same_class(name: str, names: tuple[str, ...]) -> str:
    """Return the one of `names` that a label means: 1.0 means 1 (and 1 means 1.0) where all are whole numbers.

    A label that means none of them is returned as it is.
    """
    return name if name in names else _by_number(names).get(_whole(name), name)


@lru_cache
def _by_number(names: tuple[str, ...]) -> dict[str, str]:
    """Return names by the whole numbers that they are; nothing if one is another text."""
    return {_whole(name): name for name in names} if _all_whole(names) else {}


def _all_whole(names: Iterable[str]) -> bool:
    return all(WHOLE.fullmatch(name) for name in names)


def _whole(name: str) -> str:
    """Return a whole number without a fraction of zeros; 01 stays 01, a name of its own."""
    return name.partition(".")[0] if WHOLE.fullmatch(name) else name
