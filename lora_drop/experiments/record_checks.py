"""Checks for faults of a record before it is used; tables and grids name a faulty record and go on without it.

The claims in a record are those of its experiment, whose file is checked by the same function.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from lora_drop.errors import closest

LAYOUT = {
    **{"title": str, "published": str, "rows": dict, "tasks": dict},
    **{"seeds": list, "columns": list, "metrics": list, "figures": list},
}
"""Keys of `Record.layout` that a table reads, with their types."""
MODULE = ("projection", "layer", "score", "importance")
"""What a record keeps of each LoRA in `scores.json`."""


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
    fault = _in_layout(content["layout"], content["row"])
    if fault:
        return fault
    if content.get("metrics") and content.get("primary") not in content["metrics"]:
        return "its primary metric is not among its metrics"
    config = content["config"]
    if any(config.get(key) != content[key] for key in ("task", "seed", "backbone")):
        return "task, seed and backbone are not those of its config"
    if isinstance(config.get("method"), dict) and config["method"].get("name", content["method"]) != content["method"]:
        return "method is not that of its config"
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


def _in_layout(layout: dict[str, Any], row: str) -> str:
    """Return the first fault in the rows, tasks and claims of a record's experiment; empty if there is none."""
    if row not in layout["rows"]:
        return f"layout.rows lacks its row {row!r}"
    for key in ("rows", "tasks"):
        if not all(isinstance(title, str) for title in layout[key].values()):
            return f"layout.{key} has a title that is not a text"
    claims = layout.get("claims", {})
    if not isinstance(claims, dict) or not all(isinstance(claim, dict) for claim in claims.values()):
        return "layout.claims is not what it should be"
    mistakes = [
        mistakes_of_claim(f"layout.claims.{name}", claim, list(layout["rows"])) for name, claim in claims.items()
    ]
    return next((found[0] for found in mistakes if found), "")


def mistakes_of_claim(place: str, claim: Mapping[str, Any], rows: list[str]) -> list[str]:
    """Return what is wrong with a claim of an experiment that has these rows."""
    errors = []
    if not {"says", "row", "against"} <= claim.keys() <= {"says", "row", "against", "margin"}:
        errors.append(f"{place}: needs says, row and against, and may have a margin; it has {', '.join(claim)}")
    if not isinstance(claim.get("says", ""), str):
        errors.append(f"{place}.says = {claim['says']!r}: must be a text")
    errors += [
        f"{place}.{key} = {claim[key]!r}: must be one of {', '.join(rows)}.{closest(str(claim[key]), rows)}"
        for key in ("row", "against")
        if key in claim and claim[key] not in rows
    ]
    if claim.get("row") in rows and claim.get("row") == claim.get("against"):
        errors.append(f"{place}: row and against are both {claim['row']}: name the row to compare it with")
    margin = claim.get("margin", 0)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin <= 100:
        errors.append(f"{place}.margin = {margin!r}: must be in points, a number from 0 to 100")
    return errors


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
