"""Listings of runs: a row for each run, the differences between two, and what can be removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError
from lora_drop.files import remove
from lora_drop.runs.facts import Facts, differences, find_runs, read_facts
from lora_drop.runs.locks import LOCK, hold
from lora_drop.runs.store import own_entries
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


@dataclass(frozen=True)
class Removable:
    """A folder that can be removed; of a run directory, only what runs have written into it."""

    path: Path
    run: Path
    status: str
    """Status of the run."""
    why: str
    size: int
    """Bytes."""


def removable(folder: Path, exports: bool = False, unfinished: bool = False) -> list[Removable]:
    """Return what can be removed from the runs at or below a folder; nothing from a run that is under way.

    By default these are the checkpoints of runs that are done. Those of an interrupted run stay, since it continues
    from them.

    Args:
        folder: the folder to search.
        exports: also what `export` wrote into runs.
        unfinished: also everything that failed or interrupted runs have written, unless they contain another run.
    """
    found, _ = read_all(folder)
    lost = [run for run in found if unfinished and run.status in ("failed", "interrupted")]
    lost = [run for run in lost if not _holds_another(run.path)]
    parts = [
        Removable(run.path, run.path, run.status, f"{run.status} run", sum(map(size_of, own_entries(run.path))))
        for run in lost
    ]
    for run in found:
        kinds = [("export", "export")] if exports and run not in lost and run.status != "running" else []
        kinds += [("checkpoints", "checkpoints of a run that is done")] if run.status == "done" else []
        parts += [
            Removable(run.path / name, run.path, run.status, why, size_of(run.path / name)) for name, why in kinds
        ]
    return [part for part in parts if part.size]


def _holds_another(run: Path) -> bool:
    """Return True if a run directory contains another one. A damaged one counts, too: it may matter to its owner."""
    return any(path.parent != run for path in run.rglob("run.json"))


def clean(parts: Sequence[Removable]) -> list[Path]:
    """Remove the listed parts; return the run directories that stay because they hold other files.

    Raises UserError at the first part whose run is in use or has another status than when it was listed; that part and
    all later ones are left.
    """
    kept = []
    for part in parts:
        try:
            with hold(part.run / LOCK, f"Another process is working in {part.run}: {part.path} was not removed"):
                stored = str(read_facts(part.run).manifest.get("status", "new"))
                status = "interrupted" if stored == "running" else stored  # its lock is ours, so it cannot be running
                if status != part.status:
                    raise UserError(
                        f"{part.run} is no longer {part.status}, but {status}: {part.path} was not removed."
                    )
                for each in own_entries(part.run) if part.path == part.run else [part.path]:
                    remove(each)
                    if each.parent != part.run and not any(each.parent.iterdir()):  # the trackers' `logs`
                        each.parent.rmdir()
            if part.path == part.run and any(part.run.iterdir()):
                kept.append(part.run)
            elif part.path == part.run:
                part.run.rmdir()
        except OSError as error:
            raise UserError(f"{part.path} cannot be removed ({error.strerror}).") from error
    return kept


def size_of(place: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder; 0 for a link, which is not followed."""
    if place.is_symlink():
        return 0
    inside = place.rglob("*") if place.is_dir() else [place]
    return sum(path.stat().st_size for path in inside if path.is_file() and not path.is_symlink())
