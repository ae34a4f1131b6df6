"""Progress of long work. The library is silent; the command line draws (cli/console.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

Note = str | Callable[[], str]
"""A short state, or a function that makes it, which is called only when it is shown: a loss on a GPU must be waited for."""


def text_of(note: Note) -> str:
    """Return a note as it is shown."""
    return note if isinstance(note, str) else note()


class Reporter:
    """Receives what a run has to say. This one says nothing; subclasses show it."""

    def at(self, place: str) -> None:
        """The work is done at `place`: a worker, a machine. It may move to another one."""

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

    def close(self) -> None:
        """What is drawn is removed: the work is over, or an error is about to be shown."""


class GridReporter(Reporter):
    """Also hears which run of a grid begins, and how it ended. Several may be under way at once."""

    def begin(self, name: str, number: int, total: int) -> Reporter:
        """A run begins; return what hears of its stages: this reporter, unless a subclass shows runs apart."""
        return self

    def wait(self, name: str, note: str) -> None:
        """The run cannot be performed now, as `note` says; it will begin again."""

    def end(self, name: str, note: str) -> None:
        """The run is over; `note` says its result, or why there is none."""


class Relay(Reporter):
    """Hands what a run has to say to `send`, as the name of a method and its arguments: to another process, say.

    `advance` is handed on twice a second at most, and milestones are not: a grid has many epochs.
    """

    def __init__(self, send: Callable[[tuple[Any, ...]], object]):
        self.send, self.sent = send, 0.0
        for name in ("at", "start", "doing", "finish", "skip", "notice"):
            setattr(self, name, partial(self._hand_on, name))

    def _hand_on(self, name: str, *values: Any) -> None:
        self.send((name, *values))

    def advance(self, done: int, total: int, note: Note = "") -> None:
        """Hand it on, but for what comes too soon."""
        if time.monotonic() - self.sent > 0.5 or done == total:
            self.send(("advance", done, total, text_of(note)))
            self.sent = time.monotonic()


SILENT = Reporter()
