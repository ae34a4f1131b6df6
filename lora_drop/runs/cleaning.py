"""Removal of what runs no longer need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_drop.errors import UserError
from lora_drop.files import remove
from lora_drop.runs.facts import read_facts
from lora_drop.runs.listing import read_all
from lora_drop.runs.locks import LOCK, hold
from lora_drop.runs.store import exports, own_entries


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


def removable(folder: Path, with_exports: bool = False, unfinished: bool = False) -> list[Removable]:
    """Return what can be removed from the runs at or below a folder; nothing from a run that is under way.

    By default these are the checkpoints of runs that are done. Those of an interrupted run stay, since it continues
    from them.

    Args:
        folder: the folder to search.
        with_exports: also what `export` wrote into runs.
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
        takes_exports = with_exports and run not in lost and run.status != "running"
        takes = [(each, "export") for each in exports(run.path)] if takes_exports else []
        takes += [(run.path / "checkpoints", "checkpoints of a run that is done")] if run.status == "done" else []
        parts += [Removable(place, run.path, run.status, why, size_of(place)) for place, why in takes]
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
                    if each.parent != part.run and not any(each.parent.iterdir()):  # the trackers' `logs`, `export`
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
