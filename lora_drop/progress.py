"""Progress of long work. The library is silent; the command line draws (cli/console.py)."""

from __future__ import annotations


class Reporter:
    """Receives what a run has to say. This one says nothing; subclasses show it."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """The current stage has done `done` of `total` steps; `note` is a short state such as a loss."""

    def finish(self, stage: str, seconds: float, note: str) -> None:
        """A stage has ended; `note` says its result in a few words."""

    def skip(self, stage: str, reason: str) -> None:
        """A stage is not performed."""

    def notice(self, text: str) -> None:
        """Something the user should know: truncated inputs, tiny strata, a limited run."""


class GridReporter(Reporter):
    """Also hears which run of a grid begins, and how it ended."""

    def begin(self, name: str, number: int, total: int) -> None:
        """The next run."""

    def end(self, name: str, note: str) -> None:
        """The run is over; `note` says its result, or why there is none."""


SILENT = Reporter()
