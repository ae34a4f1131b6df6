"""Kills and signals, at random moments and the worst ones: the same command must then give the same results."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torture.runs import Ground, Part, fault, fresh, options
from torture.server import Hook, Trial, call, spawn, wait

SIGKILL = "SIGKILL: random moments, evaluations, writing of checkpoints, every 6th change of a file"
SIGNALS = "SIGINT, SIGTERM and SIGHUP, once and twice"
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "open"}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def die() -> None:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_change(number: int, run: Path, tally: Path | None = None) -> Hook:
    """Let the process die at its `number`th change of a file in the run directory; `tally` receives the count."""

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


def in_evaluation(number: int, seconds: float) -> Hook:
    """Let the process die `seconds` after its `number`th evaluation has begun."""

    def hook() -> None:
        from lora_drop.runs import models

        count, evaluate = [0], models.evaluate

        def counted(*given: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, which nothing handles
            return evaluate(*given, **named)

        models.evaluate = counted

    return hook


def at_line(number: int, run: Path, tally: Path | None = None) -> Hook:
    """Let the process die at the `number`th line of the code that writes checkpoints; `tally` receives the count.

    The last written file is cut in half, as if the process had died while writing it.
    """

    def hook() -> None:
        from lora_drop.files import write_folder
        from lora_drop.training import checkpoints, nested

        files, count = {checkpoints.__file__, nested.__file__}, [0]
        folder = write_folder.__wrapped__.__code__  # type: ignore[attr-defined]

        def line(frame: FrameType, event: str, _: Any) -> Any:
            count[0] += event == "line"
            if count[0] == number:
                written = run.glob("checkpoints/*/.checkpoint-*.tmp/*")
                for path in sorted(written, key=lambda path: path.stat().st_mtime)[-1:]:
                    os.truncate(path, path.stat().st_size // 2)
                die()
            if tally is not None and event == "return":
                tally.write_text(str(count[0]))
            return line

        def entered(frame: FrameType, *_: Any) -> Any:
            return line if frame.f_code.co_filename in files or frame.f_code is folder else None

        sys.settrace(entered)

    return hook


def shots(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return `count` kills, spread over the runs: at every 6th change of a file, and at random in three other ways."""
    draw, known = random.Random(1), ground.known
    every = [(name, change) for name, mine in known.items() for change in range(1, mine["changes"] + 1, 6)]
    chosen = draw.sample(every, min(len(every), count // 2))
    found = [{"run": name, "way": "change", "at": change} for name, change in chosen]
    names = list(known)
    for number in range(count - len(found)):
        name = names[number % len(names)]
        way = ("moment", "line", "evaluation")[number // len(names) % 3]
        at = draw.random() * known[name]["seconds"]
        at = draw.randint(1, known[name]["lines"]) if way == "line" else at
        found.append({"run": name, "way": way, "at": at, "evaluation": draw.randint(1, 3)})
    return found


def shoot(shot: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Kill a run, continue it, and compare its results."""
    name, way, at, run, log = shot["run"], shot["way"], shot["at"], fresh(folder / "run"), folder / "log"
    command, what = ["run", "-d", run, *options(name)], f"{name}, {way} {at:.3g}"
    if way == "moment":
        process = spawn(command, log)
        time.sleep(at)
        os.kill(process, signal.SIGKILL)
        ended = wait(process, log)
    elif way == "evaluation":
        ended = call(command, log, in_evaluation(shot["evaluation"], max(1e-5, at / 20)))
    else:
        ended = call(command, log, {"change": at_change, "line": at_line}[way](at, run))
    in_time = ended.code in (-signal.SIGKILL, -signal.SIGALRM)
    killed = in_time or (ended.code == 0 and way in ("moment", "evaluation"))
    problem = "" if killed else f"not killed: {ended.kind}"
    yield Trial(SIGKILL, what, problem or _continued(command, run, log, ground.known[name]))


def signals(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return `count` signals at random moments: SIGINT, SIGTERM and SIGHUP, each once and twice."""
    draw, found, known = random.Random(2), [], ground.known
    kinds = [(number, again) for again in ((0.0, 0.01, 0.1), (None,)) for number in CODES]
    for place in range(count):
        (number, again), name = kinds[place % len(kinds)], list(known)[(place + place // len(kinds)) % len(known)]
        at = draw.random() * known[name]["seconds"]
        found.append({"run": name, "signal": number, "again": draw.choice(again), "at": at})
    return found


def stop(shot: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Ask a run to end by a signal, check how it ends, continue it, and compare its results."""
    name, run, log = shot["run"], fresh(folder / "run"), folder / "log"
    command, number = ["run", "-d", run, *options(name)], shot["signal"]
    process = spawn(command, log)
    time.sleep(0.05 + shot["at"])  # by then it handles signals
    os.kill(process, number)
    if shot["again"] is not None:
        time.sleep(shot["again"])
        os.kill(process, number)
    ended = wait(process, log)
    right = ended.code in (0, CODES[number]) and not ended.traceback
    problem = "" if right else f"after the signal: {ended.kind}"
    what = f"{name}, {number.name}{'' if shot['again'] is None else ' twice'} after {shot['at']:.2f} s"
    yield Trial(SIGNALS, what, problem or _continued(command, run, log, ground.known[name]))


def _continued(command: list[Any], run: Path, log: Path, mine: dict[str, Any]) -> str:
    ended = call(command, log)
    return f"continued: {ended.kind}" if ended.code else fault(run, mine["results"])


PARTS = (Part(SIGKILL, 400, shots, shoot), Part(SIGNALS, 60, signals, stop))
