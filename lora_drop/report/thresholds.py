"""Data that the page's slider needs to repeat stage 3 at any threshold.

Importances are summed here, with the same exact sum as in `pruning.selection`; the page only compares and counts.
"""

from __future__ import annotations

import math
from typing import Any

from lora_drop.errors import UserError
from lora_drop.pruning.scores import Scored
from lora_drop.pruning.selection import BELOW_ONE, Selection, select
from lora_drop.pruning.tensor_names import HALVES, PREFIX, tensor_name
from lora_drop.runs.facts import Facts, shapes_of


def slider(run: Facts) -> dict[str, Any]:
    """Return the data from which the page recomputes a selection.

    Returns:
        `threshold`, `share`, `whole` (the parameters of full LoRA); `projections`, each with `name`, `sums` (of the
        largest 1, 2, … importances), `layers` (number, importance, parameters), and `order` (the layers in the order in
        which they are retained) or `orders` (the retained layers for each count, if they do not form a single order);
        and `tensors` for the size of the file, None if the warm-up's file is missing.
    """
    assert run.selection is not None
    projections = []
    for name in dict.fromkeys(row.projection for row in run.scored):
        rows = sorted((row for row in run.scored if row.projection == name), key=lambda row: row.layer)
        ranked = sorted(rows, key=lambda row: (-row.importance, row.layer))
        sums = [math.fsum(row.importance for row in ranked[:count]) for count in range(1, len(ranked) + 1)]
        layers = [[row.layer, row.importance, row.parameters] for row in rows]
        orders = _orders(rows, sums, run.selection, run.seed)
        projections.append({"name": name, "sums": sums, "layers": layers, **_shortened(orders)})
    return {
        "threshold": run.selection.threshold,
        "share": run.selection.share,
        "whole": sum(row.parameters for row in run.scored),
        "projections": projections,
        "tensors": _tensors(run),
    }


def _orders(rows: list[Scored], sums: list[float], selection: Selection, seed: int) -> list[list[int]]:
    """Return the layers that the policy retains if the threshold asks for 1, 2, … of them."""
    thresholds = [*(min(total, BELOW_ONE) for total in sums[:-1]), 1.0]
    chosen = (select(rows, each, None, selection.policy, selection.share, seed).projections for each in thresholds)
    return [list(projections[rows[0].projection].retained) for projections in chosen]


def _shortened(orders: list[list[int]]) -> dict[str, list[Any]]:
    """Return a single order instead of many if each further count adds one layer to the previous ones."""
    added = [sorted(set(many) - set(few)) for few, many in zip([[], *orders], orders, strict=False)]
    if all(len(new) == 1 for new in added) and all(len(kept) == count for count, kept in enumerate(orders, 1)):
        return {"order": [new[0] for new in added]}
    return {"orders": orders}


def _tensors(run: Facts) -> dict[str, Any] | None:
    """Return the shapes of the warm-up's tensors: of A and B after the place of each LoRA, and of all others."""
    file = run.path / "warmup" / "adapter_model.safetensors"
    if not file.is_file():
        return None
    found = shapes_of(file)
    pairs: list[list[Any]] = []
    for row in run.scored:
        names = [tensor_name(row.name, half) for half in HALVES]
        if not found.keys() >= set(names):
            raise UserError(
                f"{file} has no LoRA of {row.name}, which scores.json names: the two are from different warm-ups. "
                f"Score again: lora-drop score -d {run.path} --force"
            )
        shapes = [found.pop(name) for name in names]
        pairs.append([row.projection, row.layer, row.name, *shapes])
    return {"prefix": PREFIX, "pairs": pairs, "others": [[name, shape] for name, shape in found.items()]}
