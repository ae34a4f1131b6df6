"""Kills and signals at random moments, at changes of files, in evaluations: the same command then gives the same."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.runs import fault, fresh, options
from torture.server import Hook, Trial, call, spawn, wait

SIGKILL = "SIGKILL: random moments, file changes, evaluations"
SIGNALS = "SIGINT once and twice, SIGTERM, SIGHUP"
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "open"}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def die() -> None:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_change(number: int, run: Path, tally: Path | None = None) -> Hook:
    """Let the process die at its `number`th change of a file in the run directory; `tally` gets their count."""

    def hook() -> None:
        count, own = [0], os.getpid()

        def audit(event: str, given: tuple[Any, ...]) -> None:
            if event not in CHANGES or os.getpid() != own or not str(given[0]).startswith(str(run)):
                return
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
            if event == "open" and not (isinstance(given[2], int) and given[2] & writes):
                return
            count[0] += 1
            if tally is not None:
                tally.write_text(str(count[0]))
            if count[0] == number:
                die()

        sys.addaudithook(audit)

    return hook


def in_evaluation(number: int) -> Hook:
    """Let the process die when its `number`th evaluation between epochs begins."""

    def hook() -> None:
        from lora_drop.training import trainer

        count, evaluate = [0], trainer._Trainer.evaluate

        def counted(self: Any, *given: Any, **named: Any) -> dict[str, float]:
            count[0] += 1
            if count[0] == number:
                die()
            return evaluate(self, *given, **named)

        trainer._Trainer.evaluate = counted  # type: ignore[method-assign]

    return hook


def shots(names: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` shots, spread over the runs and the ways to shoot."""
    draw, found = random.Random(seed), []
    for number in range(count):
        name = names[number % len(names)]
        way = ("moment", "change", "moment", "change", "evaluation")[number // len(names) % 5]
        found.append({"run": name, "way": way, "at": draw.random(), "evaluation": 1 + number % 2})
    return found


def shoot(shot: dict[str, Any], folder: Path, known: dict[str, Any]) -> Iterator[Trial]:
    """Kill a run, continue it, and compare; `known` holds results, seconds and changes of each undisturbed run."""
    name, run, log = shot["run"], fresh(folder / "run"), folder / "log"
    command, mine = ["run", "-d", run, *options(name)], known[name]
    if shot["way"] == "moment":
        process = spawn(command, log)
        time.sleep(0.02 + shot["at"] * mine["seconds"])
        os.kill(process, signal.SIGKILL)
        wait(process, log)
        what = f"{name}, after {shot['at']:.0%} of its time"
    else:
        change = 1 + int(shot["at"] * mine["changes"])
        hook = at_change(change, run) if shot["way"] == "change" else in_evaluation(shot["evaluation"])
        call(command, log, hook)
        what = f"{name}, at {f'change {change}' if shot['way'] == 'change' else 'evaluation'}"
    yield Trial(SIGKILL, what, _continued(command, run, log, mine))


def stop(shot: dict[str, Any], folder: Path, known: dict[str, Any]) -> Iterator[Trial]:
    """Send a run a signal that asks it to end, look at how it does, continue it, and compare."""
    name, run, log = shot["run"], fresh(folder / "run"), folder / "log"
    command, mine = ["run", "-d", run, *options(name)], known[name]
    number = list(CODES)[shot["signal"] % 3]
    process = spawn(command, log)
    time.sleep(0.1 + shot["at"] * mine["seconds"])
    os.kill(process, number)
    if shot["signal"] >= len(CODES):
        time.sleep(0.01)
        os.kill(process, number)
    ended = wait(process, log)
    right = ended.code in (0, CODES[number]) and not ended.traceback
    problem = "" if right else f"after the signal: {ended.kind}"
    what = f"{name}, {number.name}{' twice' if shot['signal'] >= len(CODES) else ''}"
    yield Trial(SIGNALS, what, problem or _continued(command, run, log, mine))


def _continued(command: list[Any], run: Path, log: Path, mine: dict[str, Any]) -> str:
    ended = call(command, log)
    return f"continued: {ended.kind}" if ended.code else fault(run, mine["results"])
