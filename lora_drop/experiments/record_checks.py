"""Checks for faults of a record before it is used; tables and grids name a faulty record and go on without it."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

LAYOUT = {
    **{"title": str, "published": str, "rows": dict, "tasks": dict},
    **{"seeds": list, "columns": list, "metrics": list, "figures": list},
}
"""Keys of `Record.layout` that a table reads, with their types."""
MODULE = ("projection", "layer", "score", "importance")


def fault_of(content: Any, record: type, version: int) -> str:
    """Return why a file's content is not a record of today's format; empty if it is one.

    Args:
        content: the content, read from JSON and upgraded.
        record: the dataclass `records.Record`.
        version: the version of today's format.
    """
    if not isinstance(content, dict) or content.get("version") != version:
        return f"it is not of format {version}"
    declared, hints = {item.name: item for item in fields(record)}, typing.get_type_hints(record)
    unknown = set(content) - set(declared)
    if unknown:
        return f"{min(unknown)!r} is not a key of format {version}"
    for name, item in declared.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if (required and name not in content) or (name in content and not _fits(content[name], hints[name])):
            return f"{name} is missing" if name not in content else f"{name} is not what it should be"
    return _inside(content)


def _inside(content: dict[str, Any]) -> str:
    """Return the first fault in the values that are used one by one; empty if there is none."""
    for key, kind in LAYOUT.items():
        if not isinstance(content["layout"].get(key), kind):
            return f"layout.{key} is missing or not what it should be"
    if content.get("metrics") and content.get("primary") not in content["metrics"]:
        return "its primary metric is not among its metrics"
    if content["config"].get("task") != content["task"] or content["config"].get("seed") != content["seed"]:
        return "task and seed are not those of its config"
    for name in ("best", "last", "held_out"):
        if content.get(name) and "score" not in content[name]:
            return f"{name} lacks score"
    for name in ("scores", "trained_scores"):
        if any(set(MODULE) - set(row) for row in content.get(name, [])):
            return f"{name} lacks {' or '.join(MODULE)}"
    for name, part in content.get("selection", {}).get("projections", {}).items():
        if not all(isinstance(part.get(key), list) for key in ("retained", "shared")):
            return f"selection.projections.{name} lacks retained or shared"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a JSON value, and everything in it, is of the type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    simple: dict[Any, Callable[[], bool]] = {
        Any: lambda: True,
        bool: lambda: isinstance(value, bool),
        int: lambda: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
        float: lambda: isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value),
        str: lambda: isinstance(value, str),
    }
    if hint in simple:
        return simple[hint]()
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
