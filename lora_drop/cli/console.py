"""Output of the command line: a progress line per stage, the importance profile, tables.

Standard output gets results only. Paths, names and messages may contain anything that a user wrote, so no console here
reads text as markup or colours parts of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from lora_drop.cli.long_work import LongWork
from lora_drop.interruption import Stopped, stoppable
from lora_drop.progress import Note, Reporter, text_of

if TYPE_CHECKING:
    from rich.progress import Progress
    from typing_extensions import Self

BAR_WIDTH = 40
SILENCE_S = 30.0
"""Longest silence, in seconds, where there is no bar."""
REDRAWN_S = 0.25
MOST_FOLDED = 4
"""Most columns for which cells are folded; in a wider table that does not fit, each row becomes a paragraph."""

PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
out = Console(width=None if sys.stdout.isatty() else 160, **PLAIN)
err = Console(stderr=True, **PLAIN)


class ConsoleReporter(Reporter):
    """Shows a live bar in a terminal; elsewhere prints a line per stage and epoch, and for work that takes long.

    Without a bar, a line also appears after 30 s of silence. Nothing is printed if quiet. As a context, the reporter
    lets signals end the work in order, removes the bar at the end, turns Ctrl-C into exit code 130, and says that the
    same command continues.
    """

    def __init__(self, console: Console, quiet: bool = False):
        self.console, self.quiet = console, quiet
        self.bar: Progress | None = None
        self.shown = self.said = time.monotonic()
        """Times of the last update of the bar and of the last line."""
        self.stage = ""
        self.speed = Speed()
        self.told: set[str] = set()
        self.signals = ExitStack()
        self.long = LongWork(self._state)

    def __enter__(self) -> Self:
        self.signals.enter_context(stoppable())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        self.signals.close()
        if kind in (KeyboardInterrupt, Stopped):
            self.console.print("Interrupted. The same command continues where it stopped.")
        if kind is KeyboardInterrupt:
            raise typer.Exit(130)

    def start(self, stage: str) -> None:
        """Begin a stage; show a bar in a terminal."""
        self.close()
        self.stage, self.speed = stage, Speed()
        self._open()

    def doing(self, what: str) -> None:
        """Show the work beside the bar; elsewhere print it only if it takes long, or nothing was printed for long."""
        if self._open():
            # refresh now: the work may keep Python busy for longer than the bar's own interval
            self.bar.update(self.task, description=what, refresh=True)  # type: ignore[union-attr]
        elif time.monotonic() - self.said > SILENCE_S:
            self._state(what)
        elif not self.quiet:
            self.long.begin(what)

    def advance(self, done: int, total: int, note: Note = "") -> None:
        """Move the bar, a few times a second; elsewhere print a line if nothing was printed for long."""
        self.speed.reach(done, total)
        self.long.end()
        now, last = time.monotonic(), done == total
        if self._open():
            if last or now - self.shown > REDRAWN_S:
                self.bar.update(self.task, completed=done, total=total, description=text_of(note))  # type: ignore[union-attr]
                self.shown = now
        elif now - self.said > SILENCE_S and not self.quiet:
            self._state(f"{done:,} of {total:,} {text_of(note)}{self.speed}")

    def milestone(self, text: str) -> None:
        """Print the text if there is no bar."""
        if not self._open():
            self._state(f"{text}{self.speed}")

    def finish(self, stage: str, seconds: float, note: str) -> None:
        """End a stage, and print its time and result."""
        self.close()
        self.say(f"{stage:<9} {seconds:7.1f} s  {note}")

    def skip(self, stage: str, reason: str) -> None:
        """Report that a stage is already done."""
        self.long.end()
        self.say(f"{stage:<9}   skipped  {reason}")

    def notice(self, text: str) -> None:
        """Print a notice, unless another run of the same command has already given it."""
        if text not in self.told:
            self.told.add(text)
            self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        self.said = time.monotonic()
        if not self.quiet:
            self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar, also after a stage has failed."""
        self.long.end()
        self.stage = ""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _open(self) -> bool:
        """Show a bar if there is none; return False if this is not a terminal, or if quiet."""
        if self.quiet or not self.console.is_terminal:
            return False
        if self.bar is None:
            self.bar = progress_bar(self.console, 24, "{task.fields[stage]:<7}")
            self.task = self.bar.add_task("", total=None, stage=self.stage)
            self.bar.start()
        return True

    def _state(self, text: str) -> None:
        self.say(f"{self.stage:<9} {'…':>9}  {text}")


def progress_bar(console: Console, width: int, *fields: str) -> Progress:
    """Return a bar of `width` characters, after these fields of its tasks and before counts, note and time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    *before, note = (TextColumn(text, markup=False) for text in (*fields, "{task.description}"))
    columns = (*before, BarColumn(width), MofNCompleteColumn(), note, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class Speed:
    """The speed of a stage since its first report: a resumed stage does not begin at 0."""

    def __init__(self) -> None:
        self.first = self.done = self.total = 0
        self.began = time.monotonic()

    def reach(self, done: int, total: int) -> None:
        """Record the progress. Another total, or less progress than before, starts a new measurement."""
        if total != self.total or done < self.done:
            self.first, self.total, self.began = done, total, time.monotonic()
        self.done = done

    def __str__(self) -> str:
        """Return the rate and the remaining time as text; empty while there is no rate."""
        seconds = time.monotonic() - self.began
        if self.done <= self.first or not seconds:
            return ""
        rate = (self.done - self.first) / seconds
        left = timedelta(seconds=round((self.total - self.done) / rate))
        return f" ({rate:.3g} a second, {left} left)"


def print_profile(
    console: Console, scored: Sequence[Any], selection: Any, stability: Sequence[Mapping[str, Any]]
) -> None:
    """Draw the importance of each layer as a bar; `█` layers retain their LoRA, `░` layers share one (or have none).

    With the rows of a bootstrap, also show each layer's 95 % interval and the share of resamples that retain it.
    """
    widest = max(row.importance for row in scored)
    doubts = {(row["projection"], row["layer"]): row for row in stability}
    for projection in dict.fromkeys(row.projection for row in scored):
        layers = selection.projections[projection] if selection else None
        console.print(f"\n{projection}{': ' + _summary(layers) if layers else ''}")
        for row in (row for row in scored if row.projection == projection):
            kept = layers is None or row.layer in layers.retained
            bar = ("█" if kept else "░") * max(1, round(BAR_WIDTH * row.importance / widest))
            fate = _fate(kept, selection) + _doubt(doubts.get((projection, row.layer)))
            console.print(f"  layer {row.layer:>3}  {row.importance:6.1%}  {bar:<{BAR_WIDTH}}  {fate}".rstrip())
    console.print()


def print_agreement(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print Kendall's τ of each pair of criteria: one line per pair, one column per projection."""
    projections = list(dict.fromkeys(row["projection"] for row in rows))
    taus = {(row["one"], row["two"], row["projection"]): row["tau"] for row in rows}
    lines = []
    for one, two in dict.fromkeys((row["one"], row["two"]) for row in rows):
        known = [taus[one, two, projection] for projection in projections]
        lines.append([f"{one}, {two}", *("–" if tau is None else f"{tau:+.2f}" for tau in known)])
    title = "Kendall τ of the layers' importances: 1, the same order; 0, none in common; -1, reversed"
    print_table(console, ["criteria", *projections], lines, title)


def _fate(kept: bool, selection: Any) -> str:
    if selection is None:
        return ""
    rest = "share one LoRA" if selection.share else "no LoRA"
    return f"{'retained' if kept else rest:<14}"


def _doubt(row: Mapping[str, Any] | None) -> str:
    return f"  {row['low']:.1%} to {row['high']:.1%}, retained in {row['retained']:.0%} of resamples" if row else ""


def _summary(layers: Any) -> str:
    return f"{len(layers.retained)} of {len(layers.all)} layers hold {layers.coverage:.1%} of the importance"


def note(text: str) -> None:
    """Print a notice to standard error."""
    err.print(f"note: {text}", soft_wrap=True)


def print_rows(console: Console, rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print rows that have the same keys; print nothing if there are none."""
    if rows:
        print_table(console, list(rows[0]), [list(row.values()) for row in rows], title)


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None
) -> None:
    """Print rows under column names. Numbers are right-aligned, and integers have thousands separators.

    In a table of many columns that is too wide for the terminal, each row becomes a paragraph.
    """
    if title:
        console.print(title, style="italic", soft_wrap=True)
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(cell_len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    if len(columns) > MOST_FOLDED and sum(widths) + len(widths) - 1 > console.width:
        _print_paragraphs(console, columns, cells)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        numeric = all(row[number] is None or isinstance(row[number], (int, float)) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _print_paragraphs(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the first cell of each row, and below it the other cells, each after the name of its column."""
    for first, *others in rows:
        console.print(first, style="bold", soft_wrap=True)
        line = ""
        for name, cell in zip(columns[1:], others, strict=True):
            part = f"{name} {cell}" if name else cell
            if cell and line and cell_len(f"  {line}   {part}") > console.width:
                console.print(f"  {line}", soft_wrap=True)
                line = ""
            line += (f"   {part}" if line else part) if cell else ""
        if line:
            console.print(f"  {line}", soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)
