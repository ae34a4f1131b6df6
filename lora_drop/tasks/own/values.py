"""Conversion of cells to texts, labels and numbers."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

Label = str | tuple[str, ...]
"""A label as written, or several if the cell contains a list."""
WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
"""A whole number, also in the form that pandas writes in a column with missing values: 1.0."""
SEPARATOR = ";"
MARKS = ("na", "n/a", "nan", "null", "none", "inf", "-inf", "infinity", "-infinity")
"""Markers that programs write instead of a missing or infinite number."""


def missing(value: Any) -> bool:
    """Return True for a cell without a value: empty, whitespace, null, NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """Return a cell as text: null and NaN as "", JSON types as JSON, and others (strings, dates, decimals) by `str`."""
    if missing(value):
        return value if isinstance(value, str) else ""
    in_json = isinstance(value, (bool, int, float, list, tuple, dict))
    return json.dumps(value, ensure_ascii=False, default=str) if in_json else str(value)


def as_label(value: Any) -> Label | None:
    """Return a cell as a label, or as several if it is a list or a text such as "['a', 'b']"; None if it is empty."""
    if isinstance(value, (list, tuple)):
        return tuple(as_text(item).strip() for item in value)
    if missing(value):
        return None
    text = as_text(value).strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            items = ast.literal_eval(text)  # only literals: nothing is executed
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # not a literal, or nested too deeply
            return text
        return tuple(str(item).strip() for item in items)
    return text


def several(label: Label | None) -> tuple[str, ...]:
    """Return all labels of a multilabel row, given as a list or as `a;b`."""
    parts = label if isinstance(label, tuple) else (label or "").split(SEPARATOR)
    return tuple(part.strip() for part in parts if part.strip())


def number(label: Label | None) -> float | None:
    """Return a label as a finite number; None if it is not one (1_0 is a name, though Python reads it as 10)."""
    if isinstance(label, str) and "_" in label:
        return None
    try:
        value = float(label)  # type: ignore[arg-type]  # a tuple is a TypeError
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def marks_among_numbers(labels: Collection[Label]) -> list[Label]:
    """Return the labels that mark a missing number, if all others are numbers; else none."""
    others = [label for label in labels if number(label) is None]
    return others if len(others) < len(labels) and all(str(label).lower() in MARKS for label in others) else []


def kind_of(labels: Iterable[Label]) -> str:
    """Return the kind of task that the labels (at least one) suggest."""
    labels = list(labels)
    if any(isinstance(label, tuple) or SEPARATOR in label for label in labels):
        return "multilabel"
    if all(WHOLE.fullmatch(str(label)) for label in labels) or any(number(label) is None for label in labels):
        return "classification"
    return "regression"


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in order: texts alphabetically; whole numbers by size, with 1.0 written as 1."""
    names = set(names)
    if not _all_whole(names):
        return tuple(sorted(names))
    return tuple(sorted(set(map(_whole, names)), key=lambda name: (float(name), name)))


def same_class(name: str, names: tuple[str, ...]) -> str:
    """Return the one of `names` that a label denotes: 1.0 denotes 1 (and 1 denotes 1.0) if all are whole numbers.

    A label that denotes none of them is returned unchanged.
    """
    return name if name in names else _by_number(names).get(_whole(name), name)


@lru_cache
def _by_number(names: tuple[str, ...]) -> dict[str, str]:
    """Return names by their whole number; nothing if one of them is not a whole number."""
    return {_whole(name): name for name in names} if _all_whole(names) else {}


def _all_whole(names: Iterable[str]) -> bool:
    return all(WHOLE.fullmatch(name) for name in names)


def _whole(name: str) -> str:
    """Return a whole number without a fraction of zeros. 01 stays 01, a separate name."""
    return name.partition(".")[0] if WHOLE.fullmatch(name) else name
