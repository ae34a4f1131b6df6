"""Report the progress of long work. The library is silent; the command line draws it (cli/console.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

Note = str | Callable[[], str]
"""A short state, or a function that returns it, called only for display: reading a loss from a GPU has to wait."""


def text_of(note: Note) -> str:
    """Return the text of a note."""
    return note if isinstance(note, str) else note()


class Reporter:
    """Receives the events of a run. This class ignores them; subclasses display them."""

    def at(self, place: str) -> None:
        """The work runs at `place`, a worker or a machine. It may move to another one."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def doing(self, what: str) -> None:
        """Something slow runs until the next call: a model is loaded, rows are tokenised."""

    def advance(self, done: int, total: int, note: Note = "") -> None:
        """The current stage has done `done` of `total`; `note` names the unit, and a state such as a loss."""

    def milestone(self, text: str) -> None:
        """A notable part of the current stage is done, such as an epoch. It gets a line if there is no bar."""

    def finish(self, stage: str, seconds: float, note: str) -> None:
        """A stage has ended; `note` is its result in a few words."""

    def skip(self, stage: str, reason: str) -> None:
        """A stage is skipped."""

    def notice(self, text: str) -> None:
        """The user should know something: truncated inputs, tiny strata, a limited run."""

    def close(self) -> None:
        """Anything drawn is removed, because the work is over or an error is about to be shown."""


class GridReporter(Reporter):
    """Also receives the beginning and the end of each run of a grid. Several runs may be in progress at once."""

    def begin(self, name: str, number: int, total: int) -> Reporter:
        """A run begins. Return the reporter for its stages: this one, unless a subclass shows runs separately."""
        return self

    def wait(self, name: str, note: str) -> None:
        """The run cannot be performed now, for the reason in `note`; it will begin again."""

    def end(self, name: str, note: str) -> None:
        """The run is over; `note` is its result, or the reason why there is none."""


class Relay(Reporter):
    """Passes events to `send` as the name of a method and its arguments, for example to another process.

    `advance` is passed on at most twice a second. Milestones are dropped, as a grid has many epochs.
    """

    def __init__(self, send: Callable[[tuple[Any, ...]], object]):
        self.send, self.sent = send, 0.0
        for name in ("at", "start", "doing", "finish", "skip", "notice"):
            setattr(self, name, partial(self._hand_on, name))

    def _hand_on(self, name: str, *values: Any) -> None:
        self.send((name, *values))

    def advance(self, done: int, total: int, note: Note = "") -> None:
        """Pass the event on, unless the last one was less than half a second ago and the stage is not done."""
        if time.monotonic() - self.sent > 0.5 or done == total:
            self.send(("advance", done, total, text_of(note)))
            self.sent = time.monotonic()


SILENT = Reporter()
