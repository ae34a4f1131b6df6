"""Listings of runs: a row for each run, and the differences between two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError
from lora_drop.runs.facts import Facts, differences, find_runs, lost_records, read_facts
from lora_drop.runs.words import shown, spans

Rows = list[dict[str, Any]]


def read_all(folder: Path) -> tuple[list[Facts], list[str]]:
    """Return the runs at or below a folder, and a sentence for each damaged one. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist. Name the one that holds run directories.")
    found, damaged = [], []
    for path in find_runs(folder):
        try:
            found.append(read_facts(path))
        except UserError as error:
            damaged.append(str(error))
    damaged += lost_records(folder)
    if not found and not damaged:
        raise UserError(f"{folder} holds no run. Make one with: lora-drop run --run-dir {folder}/NAME")
    return found, damaged


def row(run: Facts, folder: Path) -> dict[str, Any]:
    """Return a run's row in a listing of `folder`; values that do not exist yet are None."""
    status, threshold, metric, score = run.status, None, None, None
    try:
        status = state(run)
        metric = run.primary or None
        threshold = run.selection.threshold if run.selection and run.trained_as_selected else None
        score = round(run.score, 4) if run.score is not None else None
    except UserError:
        status += ", damaged"
    return {
        "run": run.path.relative_to(folder).as_posix() if run.path != folder else run.path.name or ".",
        "task": run.subject,
        "backbone": run.backbone,
        "method": run.method,
        "seed": run.seed,
        "T": round(threshold, 4) if threshold is not None else None,
        "parameters": run.parameters.get("adapter"),
        "metric": metric,
        "score": score,
        "time": round(run.seconds, 1),
        "status": status,
    }


def state(run: Facts) -> str:
    """Return the status of a run.

    A run that ended before the training names its last stage. One that was selected or configured anew after the
    training says so.
    """
    if run.status == "done" and "train" not in run.stages:
        return f"done up to {list(run.stages)[-1]}" if run.stages else "done"
    anew = "" if run.trained_as_selected else ", then selected again"
    return run.status + (anew if run.trained_as_configured else ", then reconfigured")


def compare(one: Facts, other: Facts) -> dict[str, Rows]:
    """Return the differences between two runs.

    Returns:
        Rows of `what`, `a` and `b` under `configuration`, `data` (the identities of own data's rows), `result` (status,
        parameters, metrics, time) and `layers` (those that retain their own LoRA, by projection).
    """
    settings = [(key, shown(a), shown(b)) for key, (a, b) in differences(one, other).items()]
    return {
        "configuration": _rows(settings),
        "data": _rows(_contents(one, other)),
        "result": _rows(_results(one, other)),
        "layers": _rows(_layers(one, other)),
    }


def _rows(values: Sequence[tuple[str, Any, Any]]) -> Rows:
    return [{"what": what, "a": a, "b": b} for what, a, b in values if a != b]


def _contents(one: Facts, other: Facts) -> list[tuple[str, Any, Any]]:
    first, second = one.contents, other.contents
    return [(f"content of {split} rows", first[split], second[split]) for split in first if split in second]


def _results(one: Facts, other: Facts) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = [("status", state(one), state(other))]
    found.append(("parameters", one.parameters.get("adapter"), other.parameters.get("adapter")))
    first, second = (run.metrics.get("metrics", {}) for run in (one, other))
    found += [(name, first.get(name), second.get(name)) for name in first | second]
    found.append(("seconds", round(one.seconds, 1), round(other.seconds, 1)))
    return found


def _layers(one: Facts, other: Facts) -> list[tuple[str, Any, Any]]:
    first, second = (run.selection.projections if run.selection else {} for run in (one, other))
    kept = [{name: spans(layers.retained) for name, layers in each.items()} for each in (first, second)]
    return [(name, kept[0].get(name), kept[1].get(name)) for name in kept[0] | kept[1]]
