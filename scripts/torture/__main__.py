"""`make torture`: the promises of docs/reliability.md tried, and a table of what came of it. Exit code 1: a fault."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GIT_OPTIONAL_LOCKS": "0"}

from torture import damage, hostile, kills, runs
from torture.server import Trial, call, preload, shared_out, spawn, wait

GOALS = {
    kills.SIGKILL: 400,
    kills.SIGNALS: 60,
    damage.DAMAGE: 700,
    hostile.HOSTILE: 30,
    hostile.FUZZ: 2500,
    hostile.DISKS: 30,
    hostile.WRITERS: 20,
}
"""Trials of each kind in a whole torture, none of which may end in a fault."""


def counted(root: Path, name: str) -> dict[str, Any]:
    """Return results, seconds and changes of files of an undisturbed run."""
    base, run = runs.undisturbed(name, root), runs.fresh(root / "timed")
    tally = root / "tally"
    began = time.monotonic()
    call(["run", "-d", run, *runs.options(name)], root / "log", kills.at_change(10**9, run, tally))
    seconds = time.monotonic() - began
    return {"results": runs.results(base), "seconds": seconds, "changes": int(tally.read_text()), "base": base}


def half_finished(root: Path, name: str) -> Path:
    """Return a run that was killed in the training, when two checkpoints were there."""
    run, log = runs.fresh(root / "half"), root / "half.log"
    process = spawn(["run", "-d", run, *runs.options(name)], log)
    while len(list(run.glob("checkpoints/train/checkpoint-*/manifest.json"))) < 2:
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    wait(process, log)
    return run


def every(items: list[Any], count: int) -> list[Any]:
    """Return `count` of the items, evenly spread; all, if there are fewer."""
    return items if len(items) <= count else [items[number * len(items) // count] for number in range(count)]


def trials(root: Path, names: list[str], share: float, jobs: int, tell: Callable[[str], None]) -> Iterable[Trial]:
    """Yield the trials of all kinds with these runs; `share` is the part of the goals that is tried."""
    number = {test: max(1, round(goal * share)) for test, goal in GOALS.items()}
    known = {name: counted(root, name) for name in names}
    first = names[0]
    finished, half = known[first]["base"], half_finished(root, first)

    def of(work: Callable[..., Iterable[Trial]], items: list[Any], given: dict[str, Any]) -> list[Trial]:
        began = time.monotonic()
        found = shared_out(partial(_with, work, given), items, root, jobs)
        tell(f"{len(found)} trials of {work.__name__} in {time.monotonic() - began:.0f} s")
        return found

    yield from of(kills.shoot, kills.shots(names, number[kills.SIGKILL], 1), known)
    signals = [{**shot, "signal": place % 6} for place, shot in enumerate(kills.shots(names, number[kills.SIGNALS], 2))]
    yield from of(kills.stop, signals, known)
    cases = damage.cases(finished, half, first, 3)
    yield from of(damage.damage, every(cases, number[damage.DAMAGE]), known[first])
    attacks = hostile.attacks(finished, half, first)
    yield from of(hostile.attack, every(attacks, number[hostile.HOSTILE]), {})
    texts = _texts(finished)
    fuzzed = [
        {"kind": kind, "seed": seed, "count": max(1, number[hostile.FUZZ] // (5 * len(texts)))}
        for seed in range(5)
        for kind in texts
    ]
    yield from of(hostile.fuzz, fuzzed, texts)
    codes, changes = (errno.ENOSPC, errno.EROFS), known[first]["changes"]
    files = [1 + place * changes // (2 * number[hostile.DISKS]) for place in range(number[hostile.DISKS])]
    disks = [{"run": first, "number": file, "code": codes[place % 2]} for place, file in enumerate(files)]
    yield from of(hostile.disk, disks, known)
    yield from of(
        hostile.writers, [{"run": names[place % len(names)]} for place in range(number[hostile.WRITERS])], known
    )


def _with(work: Callable[..., Iterable[Trial]], given: dict[str, Any], item: Any, folder: Path) -> Iterable[Trial]:
    return work(item, folder, given)


def _texts(finished: Path) -> dict[str, str]:
    """Return a right text of each kind, to be altered."""
    record = next(iter(sorted((Path(__file__).parents[2] / "results").glob("*/*/*.json"))))
    predictions = (finished / "predictions.jsonl").read_text(encoding="utf-8")
    configuration = (finished / "config.yaml").read_text(encoding="utf-8")
    return {
        **{"configuration": configuration, "override": "train.learning_rate=5e-4"},
        **{"record": record.read_text(encoding="utf-8"), "prediction": predictions},
    }


def table(found: list[Trial]) -> str:
    """Return a line for each kind of trial: how many, the goal, and how many ended in a fault."""
    lines = ["| test | trials | goal | faults |", "|---|---|---|---|"]
    for test, goal in GOALS.items():
        mine = [trial for trial in found if trial.test == test]
        lines.append(f"| {test} | {len(mine)} | {goal} | {sum(bool(trial.fault) for trial in mine)} |")
    return "\n".join(lines)


def main() -> None:
    """Torture, print the table, and name each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="part of the trials (1: all)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--json", type=Path, help="also write all trials to this file")
    parser.add_argument("--runs", help="only these runs, separated by commas; the first one is damaged")
    given = parser.parse_args()
    names = given.runs.split(",") if given.runs else list(runs.RUNS)
    preload()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        os.environ["LORA_DROP_CACHE"] = f"{folder}/cache"
        found = list(trials(Path(folder), names, given.share, given.jobs, lambda text: print(text, file=sys.stderr)))
    if given.json:
        given.json.write_text(json.dumps([vars(trial) for trial in found], indent=1))
    print(table(found))
    faults = [trial for trial in found if trial.fault]
    for trial in faults:
        print(f"FAULT {trial.test}: {trial.what}: {trial.fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
