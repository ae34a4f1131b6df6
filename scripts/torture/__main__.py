"""`make torture`: try the promises of docs/reliability.md and print a table of the outcomes. Exit code 1: a fault."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GIT_OPTIONAL_LOCKS": "0"}

from torture import damage, fuzz, hostile, kills, machine, runs, several
from torture.runs import Ground, Part
from torture.server import Trial, call, preload, shared_out

PARTS = {each.__name__.rpartition(".")[2]: each.PARTS for each in (kills, damage, hostile, fuzz, machine, several)}
"""The lines of the table, by module."""
MEMORY = Path("/dev/shm")
"""Folder for run directories without waiting for a disk. A killed process leaves the same files there as on a disk."""


def counted(root: Path, name: str) -> dict[str, Any]:
    """Return an undisturbed run's results and seconds, its number of file changes, and of lines of checkpoint code."""
    began = time.monotonic()
    base = runs.undisturbed(name, root)
    seconds, run = time.monotonic() - began, runs.fresh(root / "counted")
    changes, lines = root / "changes", root / "lines"

    def count() -> None:
        kills.at_change(-1, run, changes)()
        kills.at_line(-1, run, lines)()

    call(["run", "-d", run, *runs.options(name)], root / "log", count)
    numbers = {"changes": int(changes.read_text()), "lines": int(lines.read_text())}
    return {"results": runs.results(base), "seconds": seconds, "base": base, **numbers}


def prepared(root: Path, names: list[str]) -> Ground:
    """Import everything that is needed, and perform each run undisturbed."""
    preload([["run", "-d", root / name, *runs.options(name)] for name in names[:2]], root / "log")
    known = {name: counted(root, name) for name in names}
    return Ground(root, known, names[0], known[names[0]]["base"], runs.half_finished(names[0], root))


def trials(part: Part, ground: Ground, share: float, jobs: int, tell: Callable[[str], None]) -> list[Trial]:
    """Return the trials of a part; `share` is the fraction of its goal that is tried."""
    began, used = time.monotonic(), _cpu_seconds()
    cases = part.cases(ground, max(1, round(part.goal * share)))
    found = shared_out(partial(_with, part, ground), cases, ground.root, jobs)
    tell(f"{len(found)} in {time.monotonic() - began:.0f} s, {_cpu_seconds() - used:.0f} s of CPU: {part.test}")
    return found


def _cpu_seconds() -> float:
    """Return the CPU seconds of all children that have ended, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _with(part: Part, ground: Ground, case: dict[str, Any], folder: Path) -> list[Trial]:
    return list(part.work(case, folder, ground))


def table(parts: list[Part], found: list[Trial]) -> str:
    """Return a table with a line for each kind of trial: number of trials, goal, and number of faults."""
    lines = ["| test | trials | goal | faults |", "|---|---|---|---|"]
    for part in parts:
        mine = [trial for trial in found if trial.test == part.test]
        lines.append(f"| {part.test} | {len(mine)} | {part.goal} | {sum(bool(trial.fault) for trial in mine)} |")
    return "\n".join(lines)


def main() -> None:
    """Perform the trials, print the table, and name each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="part of the trials (1: all)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--json", type=Path, help="also write all trials to this file")
    parser.add_argument("--runs", help="only these runs, separated by commas; the first one is damaged")
    parser.add_argument("--parts", default=",".join(PARTS), help="only these parts, separated by commas (%(default)s)")
    given = parser.parse_args()
    for names, known in ((given.parts, PARTS), (given.runs or "", runs.RUNS)):
        for name in filter(None, names.split(",")):
            if name not in known:
                parser.error(f"{name!r} must be one of {', '.join(known)}")
    parts = [part for name in given.parts.split(",") for part in PARTS[name]]
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="torture-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        os.environ["LORA_DROP_CACHE"] = f"{folder}/cache"
        ground = prepared(Path(folder), given.runs.split(",") if given.runs else list(runs.RUNS))
        for part in parts:
            found += trials(
                part, ground, given.share, given.jobs, lambda text: print(text, file=sys.stderr, flush=True)
            )
    if given.json:
        given.json.write_text(json.dumps([vars(trial) for trial in found], indent=1))
    print(table(parts, found))
    print(f"{len(found)} trials in {time.monotonic() - began:.0f} s, {_cpu_seconds():.0f} s of CPU")
    faults = [trial for trial in found if trial.fault]
    for trial in faults:
        print(f"FAULT {trial.test}: {trial.what}: {trial.fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
