"""Progress of long work. The library is silent; the command line draws (cli/console.py)."""

from __future__ import annotations

from collections.abc import Callable

Note = str | Callable[[], str]
"""A short state, or a function that makes it, which is called only when it is shown: a loss on a GPU must be waited for."""


def text_of(note: Note) -> str:
    """Return a note as it is shown."""
    return note if isinstance(note, str) else note()


class Reporter:
    """Receives what a run has to say. This one says nothing; subclasses show it."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def doing(self, what: str) -> None:
        """Something takes a while: a model is loaded, rows are tokenised. Until the next call."""

    def advance(self, done: int, total: int, note: Note = "") -> None:
        """The current stage has done `done` of `total`; `note` says of what, and a state such as a loss."""

    def milestone(self, text: str) -> None:
        """A part of the current stage is done that deserves a line where no bar is seen: an epoch, with its loss."""

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
