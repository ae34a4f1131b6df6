"""Comparison of criteria: their importances of the layers, the layers each would retain, and their agreement."""

from __future__ import annotations

from typing import Any

from lora_drop.pruning.agreement import by_layer
from lora_drop.pruning.scores import Scored
from lora_drop.pruning.selection import Selection, rule_of, select
from lora_drop.registry import CRITERIA
from lora_drop.runs.facts import Facts


def side_by_side(run: Facts) -> list[dict[str, Any]]:
    """Return the comparison of a run's criteria, one dictionary per projection; empty if none were compared.

    Each has the `projection`, its `layers`, and `rows`, one per criterion with its `name`, `title`, `cells`
    (importance, heat of the cell, True if the layer would be retained), the number `retained`, and Kendall's `taus`
    with all criteria in order.
    """
    content = run.criteria
    if not content:
        return []
    found = {name: entry["modules"] for name, entry in content["criteria"].items()}
    taus = {(row["projection"], row["one"], row["two"]): row["tau"] for row in content["agreement"]}
    chosen = {name: _selected(run, rows) for name, rows in found.items()}

    def row(name: str, projection: str) -> dict[str, Any]:
        shares = by_layer(found[name], projection)
        most, retained = max(shares.values()), chosen[name].projections[projection].retained
        cells = [
            (share, 100 * share / most if most else 0, layer in retained) for layer, share in sorted(shares.items())
        ]
        pairs = [1.0 if other == name else _tau(taus, projection, name, other) for other in found]
        return {"name": name, "title": title_of(name), "cells": cells, "retained": len(retained), "taus": pairs}

    return [
        {
            "projection": projection,
            "layers": sorted(by_layer(next(iter(found.values())), projection)),
            "rows": [row(name, projection) for name in found],
        }
        for projection in dict.fromkeys(row.projection for row in run.scored)
    ]


def _selected(run: Facts, rows: list[dict[str, Any]]) -> Selection:
    return select([Scored(**row) for row in rows], **rule_of(run.config["method"]), seed=run.seed)


def _tau(taus: dict[tuple[str, str, str], float | None], projection: str, one: str, two: str) -> float | None:
    return taus.get((projection, one, two), taus.get((projection, two, one)))


def title_of(name: str) -> str:
    """Return the title of a criterion, or its name if it belongs to a plugin that is not loaded."""
    return str(CRITERIA.get(name).title) if name in CRITERIA.names() else name
