"""Failures of the machine and of other processes: full and read-only disks, two writers, caches, a stopped worker."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_drop.files import file_digest
from torture.fuzz import ROWS, table
from torture.runs import OUTPUTS, Ground, Part, fault, fresh, options
from torture.server import Ended, Hook, Trial, call, spawn, wait

MACHINE = "two writers, four caches, stopped worker, full and read-only disks"
OWN = ["-o", "backbone=tiny:bert", "-o", "train.epochs=1", "-o", "train.max_length=24", "-o", "train.batch_size=8"]
GRID = {
    **{"title": "x", "tasks": ["toy-nli"], "seeds": [0]},
    "set": {"backbone": "tiny:bert", "limit.train": 32, "limit.eval": 8},
}
CACHES = ("four at once", "unwritable", "a file in its place", "no home")


def cases(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return cases of all kinds, most of them failing disks."""
    names, changes = list(ground.known), ground.known[ground.first]["changes"]
    writers, caches, stopped = (max(1, count * part // 63) for part in (20, 8, 5))
    disks = max(1, count - writers - caches - stopped)
    return [
        *({"kind": "disk", "number": 1 + place * changes // (2 * disks), "code": place % 2} for place in range(disks)),
        *({"kind": "writers", "run": names[place % len(names)]} for place in range(writers)),
        *({"kind": "caches", "how": CACHES[place % 4], "seed": place} for place in range(caches)),
        *({"kind": "stopped", "stage": ("score", "train")[place % 2]} for place in range(stopped)),
    ]


def attempt(case: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Try a case of any kind."""
    what = ", ".join(str(value) for value in case.values())
    yield Trial(MACHINE, what, WORK[case["kind"]](case, folder, ground))


def failing(number: int, run: Path, code: int) -> Hook:
    """Let opening a file for writing in the run directory fail from the `number`th time on."""

    def hook() -> None:
        count = [0]

        def audit(event: str, given: tuple[Any, ...]) -> None:
            if event != "open" or not str(given[0]).startswith(str(run)):
                return
            if isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR):
                count[0] += 1
                if count[0] >= number:
                    raise OSError(code, os.strerror(code), str(given[0]))

        sys.addaudithook(audit)

    return hook


def disk(case: dict[str, Any], folder: Path, ground: Ground) -> str:
    """Let the disk become full or read-only at some file, then continue on a working disk."""
    run, log, name = fresh(folder / "run"), folder / "log", ground.first
    command = ["run", "-d", run, *options(name)]
    ended = call(command, log, failing(case["number"], run, (errno.ENOSPC, errno.EROFS)[case["code"]]))
    if ended.code not in (0, 2) or ended.traceback:
        return ended.kind
    again = call(command, log)
    return f"continued: {again.kind}" if again.code else fault(run, ground.known[name]["results"])


def writers(case: dict[str, Any], folder: Path, ground: Ground) -> str:
    """Start a run twice in one directory: one must work, the other must refuse, and the results must be right."""
    run, logs = fresh(folder / "run"), [folder / "one", folder / "two"]
    command = ["run", "-d", run, *options(case["run"])]
    processes = [spawn(command, log) for log in logs]
    ended = [wait(process, log) for process, log in zip(processes, logs, strict=True)]
    if sorted(each.code for each in ended) not in ([0, 2], [0, 0]) or any(each.traceback for each in ended):
        return " and ".join(each.kind for each in ended)
    return fault(run, ground.known[case["run"]]["results"])


def caches(case: dict[str, Any], folder: Path, ground: Ground) -> str:
    """Run on a cache that four processes share, or that is damaged or unusable: the results must be the same."""
    cache, data = fresh(folder / "cache"), folder / "rows.csv"
    turned = ROWS[case["seed"] :] + ROWS[: case["seed"]]
    data.write_text(table([("text", "label"), *(list(row.values()) for row in turned)]))
    if case["how"] == "a file in its place":
        cache.unlink(missing_ok=True)
        cache.write_text("")

    def hook() -> None:
        for name in ("LORA_DROP_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
            os.environ.pop(name, None)
        if case["how"] == "no home":
            os.environ["HOME"] = "/nonexistent"
        else:
            os.environ["LORA_DROP_CACHE"] = "/proc/cache" if case["how"] == "unwritable" else str(cache)

    def performed(names: str) -> list[tuple[Ended, list[str]]]:
        runs = [fresh(folder / f"run-{name}") for name in names]
        logs = [folder / f"log-{name}" for name in names]
        command = ["run", "--data", data, *OWN]
        started = [spawn([*command, "-d", run], log, hook) for run, log in zip(runs, logs, strict=True)]
        ended = [wait(process, log) for process, log in zip(started, logs, strict=True)]
        return [(end, [file_digest(run / name) for name in OUTPUTS]) for end, run in zip(ended, runs, strict=True)]

    together = performed("abcd" if case["how"] == "four at once" else "a")
    for path in [path for path in cache.rglob("*") if path.is_file()] if cache.is_dir() else []:
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 32, len(content), max(1, len(content) // 16)):
            content[place] ^= 1
        path.write_bytes(content)
    found = [*together, *performed("e")]
    cache.unlink() if cache.is_file() else shutil.rmtree(cache, ignore_errors=True)
    broken = [end.kind for end, _ in found if end.code or end.traceback]
    return "; ".join(broken) or ("" if all(digests == found[0][1] for _, digests in found) else "other results")


def stopped(case: dict[str, Any], folder: Path, ground: Ground) -> str:
    """Stop a worker of a grid in a stage. Another must name it and not wait forever; resumed, it must finish."""
    rows = {"a": {"title": "A"}, "b": {"title": "B", "method.threshold": 0.5}}
    (folder / "grid.yaml").write_text(json.dumps({**GRID, "rows": rows}))
    fresh(folder / "results")
    command = ["reproduce", folder / "grid.yaml", "--runs", fresh(folder / "runs"), "--results", folder / "results"]

    def stop_itself() -> None:
        from lora_drop.experiments import one_run

        perform = one_run.perform
        done: list[Any] = []

        def stopping(job: Any, stage: Any) -> None:
            if stage.name == case["stage"] and not done:
                done.append(stage)
                os.kill(os.getpid(), signal.SIGSTOP)
            perform(job, stage)

        one_run.perform = stopping

    def impatient() -> None:
        from lora_drop.experiments import engine

        engine.NAMED_AFTER_S = 0.3

    first = spawn(command, folder / "one", stop_itself)
    end = time.monotonic() + 60
    while os.waitid(os.P_PID, first, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    second = call(command, folder / "two", impatient)
    os.kill(first, signal.SIGCONT)
    ended = [wait(first, folder / "one"), call(command, folder / "three")]
    broken = [each.kind for each in ended if each.code or each.traceback]
    records = len(list((folder / "results").rglob("*-s0-*.json")))
    said = second.code == 1 and not second.traceback and f"kill -CONT {first}" in second.text
    return "; ".join(broken) or ("" if said and records == 2 else f"{records} records; it said: {second.text[-200:]}")


WORK = {"disk": disk, "writers": writers, "caches": caches, "stopped": stopped}
PARTS = (Part(MACHINE, 63, cases, attempt),)
