"""The progress of a grid: in a terminal, a table of the runs under way, and a line for each run that has ended."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from lora_drop.cli.console import REDRAWN_S, SILENCE_S, ConsoleReporter, Speed, progress_bar
from lora_drop.cli.long_work import LongWork
from lora_drop.progress import GridReporter, Note, Reporter, text_of


class ConsoleGridReporter(ConsoleReporter, GridReporter):
    """Prints one line for each run that is over, and shows a row for each run that is under way.

    A row has run, place, stage, steps, epoch and best score so far, and the time left in the stage. Without a terminal,
    such a row is printed as a line every 30 s.
    """

    def __init__(self, console: Console, quiet: bool = False):
        super().__init__(console, quiet)
        self.long = LongWork(self.say)
        self.rows: dict[str, _Row] = {}

    def begin(self, name: str, number: int, total: int) -> Reporter:
        """Begin a run, and return its reporter."""
        label = f"{number:>{len(str(total))}}/{total}  {name}"
        if not self.rows:
            self.close()  # the bar of what came before the grid: it has other columns
        if self.bar is None and self.console.is_terminal and not self.quiet:
            self.bar = progress_bar(
                self.console, 16, "{task.fields[label]}", "{task.fields[place]}", "{task.fields[stage]:<7}"
            )
            self.bar.start()
        self.rows[name] = _Row(self, label)
        return self.rows[name]

    def wait(self, name: str, note: str) -> None:
        """Report that a run has to wait."""
        row = self._remove(name)
        self.notice(f"{name} waits: {note}")
        if row is not None and not self.rows:
            self.close()

    def end(self, name: str, note: str) -> None:
        """End a run, and print its time and result."""
        row = self._remove(name)
        took = f"{time.monotonic() - row.began:.1f} s" if row else "not begun"
        if not self.rows:
            self.close()
        place = f"{row.place}  " if row and row.place and row.place not in note else ""
        self.say(f"{row.label if row else name}  {took}  {place}{note}")

    def _remove(self, name: str) -> _Row | None:
        self.long.end()
        row = self.rows.pop(name, None)
        if row is not None and self.bar is not None and row.task is not None:
            self.bar.remove_task(row.task)
        return row


class _Row(Reporter):
    """The reporter of one run under way."""

    def __init__(self, grid: ConsoleGridReporter, label: str):
        self.grid, self.label, self.began = grid, label, time.monotonic()
        self.fields: dict[str, Any] = {"label": label, "place": "", "stage": "begins"}
        self.task: Any = None
        self.shown, self.speed = 0.0, Speed()
        if grid.bar is not None:
            self.task = grid.bar.add_task("", total=None, **self.fields)

    @property
    def place(self) -> str:
        return str(self.fields["place"])

    def at(self, place: str) -> None:
        self.fields["place"] = place
        self._update(place=place)

    def start(self, stage: str) -> None:
        self.fields["stage"] = stage
        if self.grid.bar is not None:
            self.grid.bar.reset(self.task, total=None, description="", **self.fields)

    def doing(self, what: str) -> None:
        self._update(description=what, refresh=True)
        self._state(what)
        if self.grid.bar is None and not self.grid.quiet:
            self.grid.long.begin(what, self._line(what))

    def advance(self, done: int, total: int, note: Note = "") -> None:
        self.speed.reach(done, total)
        self.grid.long.end()
        if self.grid.bar is None:
            self._state(lambda: f"{done:,} of {total:,} {text_of(note)}{self.speed}")
        elif time.monotonic() - self.shown > REDRAWN_S or done == total:
            self._update(completed=done, total=total, description=text_of(note))
            self.shown = time.monotonic()

    def notice(self, text: str) -> None:
        self.grid.notice(text)

    def _state(self, note: Note) -> None:
        """Print the progress if there is no bar and nothing was printed for long."""
        if self.grid.bar is None and time.monotonic() - self.grid.said > SILENCE_S:
            self.grid.say(self._line(note))

    def _line(self, note: Note) -> str:
        return f"{self.label}  {self.fields['stage']}  {text_of(note)}"

    def _update(self, **values: Any) -> None:
        if self.grid.bar is not None:
            self.grid.bar.update(self.task, **values)
