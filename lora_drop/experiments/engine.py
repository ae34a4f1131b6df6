"""Perform the runs of a grid: hand them to an engine, write their records, and retry those that had to wait.

A run that has a record is not repeated, and a run that two experiments have in common is performed once. Several
processes, also on several machines with one file system, may work on a grid at the same time. Each takes runs that no
other process is working on and then waits for the others' runs, so that each ends with the whole table or says what it
lacks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from lora_drop.experiments.engines.base import Engine
from lora_drop.experiments.grid import Planned
from lora_drop.experiments.one_run import End
from lora_drop.experiments.results import Results
from lora_drop.progress import GridReporter
from lora_drop.runs.locks import is_held, owner

POLL_S = 1.0
NAMED_AFTER_S = 30.0
"""Seconds after which a process that is waited for is named; if it is stopped or dead, the wait then ends."""
PATIENCE_S = 6 * 3600.0
"""Seconds to wait for a process of another machine, as its state cannot be checked."""


@dataclass
class GridOutcome:
    """The outcome of a grid."""

    performed: list[str] = field(default_factory=list)
    already: int = 0
    """Number of runs that already had a record, or got one from another process meanwhile."""
    busy: dict[str, str] = field(default_factory=dict)
    """By run, the process that holds it but does not work."""
    failed: dict[str, str] = field(default_factory=dict)
    """Error message by run."""


@dataclass
class _Wait:
    """The wait of a run for another process, which holds the run or makes its warm-up."""

    lock: Path
    since: float = field(default_factory=time.monotonic)
    tries: int = 0
    again: float = 0.0
    """Time of the next attempt; the delay grows with each attempt, up to half a minute."""
    named: bool = False

    def renew(self, lock: Path) -> None:
        """Wait again after an attempt."""
        self.lock, self.again, self.tries = lock, time.monotonic() + min(30, 2**self.tries), self.tries + 1

    @property
    def over(self) -> bool:
        """True if the run may be tried now."""
        return time.monotonic() >= self.again and not is_held(self.lock)

    @property
    def seconds(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self.since

    @property
    def vain(self) -> bool:
        """True if waiting longer is pointless."""
        if not is_held(self.lock):
            return False
        holder = owner(self.lock)
        state = holder.state if holder else "elsewhere"
        return state != "running" and self.seconds > (PATIENCE_S if state == "elsewhere" else NAMED_AFTER_S)

    def __str__(self) -> str:
        holder = owner(self.lock)
        if holder is None:
            return f"another process, whose id is unknown, holds {self.lock}"
        return (
            f"{holder} "
            + {
                "running": f"is working on it ({self.lock})",
                "stopped": f"holds {self.lock} and is stopped. Resume it with: kill -CONT {holder.pid}, or end it with: kill "
                f"-KILL {holder.pid}",
                "dead": f"is dead, but a process that it started still holds {self.lock}: end that process",
                "elsewhere": f"holds {self.lock}. If it no longer works, end it on that machine",
            }[holder.state]
        )


def perform_grid(planned: Sequence[Planned], results: Results, report: GridReporter, engine: Engine) -> GridOutcome:
    """Perform the runs that have no record yet. A run that fails does not stop the others.

    Args:
        planned: the runs.
        results: the results, looked up and written here.
        report: receives progress.
        engine: performs the runs.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the runs under way have written a checkpoint.
    """
    for text in results.notices(planned):
        report.notice(text)
    with engine:
        return _Grid(planned, results, report, engine).run()


class _Grid:
    """The runs to do, under way at the engine, and waiting, by their number in the grid."""

    def __init__(self, planned: Sequence[Planned], results: Results, report: GridReporter, engine: Engine):
        self.planned, self.results, self.report, self.engine = planned, results, report, engine
        self.todo = deque(range(len(planned)))
        self.waiting: set[int] = set()
        self.waits: dict[int, _Wait] = {}
        self.outcome = GridOutcome()

    def run(self) -> GridOutcome:
        while self.todo or self.waiting or self.engine.working:
            self._hand_out()
            if self.engine.working or self.waiting:
                for number, end in self.engine.ended(POLL_S):
                    self._settle(number, end)
                self._look_at_waiting()
            if not (self.todo or self.engine.working) and all(self.waits[number].vain for number in self.waiting):
                break
        self.outcome.busy = {self.planned[number].name: str(self.waits[number]) for number in sorted(self.waiting)}
        return self.outcome

    def _hand_out(self) -> None:
        while self.todo and self.engine.free:
            number = self.todo.popleft()
            run = self.planned[number]
            if self.results.has(run):  # checked for each in turn: another process may have done it
                self.results.join(run)
                self.outcome.already += 1
            else:
                line = cache(partial(self.report.begin, run.name, number + 1, len(self.planned)))
                self.engine.begin(number, run, line)

    def _settle(self, number: int, end: End) -> None:
        run = self.planned[number]
        if end.busy is not None:
            self.waits.setdefault(number, _Wait(end.busy)).renew(end.busy)
            self.waiting.add(number)
            self.report.wait(run.name, end.note)
            return
        if end.record is None:
            self.outcome.failed[run.name] = end.note
        else:
            self.results.write(run, end.record)
            self.outcome.performed.append(run.name)
        self.report.end(run.name, end.note)

    def _look_at_waiting(self) -> None:
        for number in sorted(self.waiting):
            wait = self.waits[number]
            if wait.over:
                self.waiting.remove(number)
                self.todo.append(number)
            elif not wait.named and wait.seconds > NAMED_AFTER_S:
                wait.named = True
                self.report.notice(f"{self.planned[number].name} waits: {wait}")
