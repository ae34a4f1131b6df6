"""A line for long work that reports nothing itself, such as loading a model or starting torch."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

LONG_S = 5.0
"""Seconds after which work counts as long."""


class LongWork:
    """Names the work under way once it has taken long, once for each kind of work.

    A timer does this, since the work itself makes no calls meanwhile.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.line, self.kind, self.began = "", "", 0.0
        self.told: set[str] = set()
        self.timer: threading.Timer | None = None

    def begin(self, what: str, line: str = "") -> None:
        """Begin work, in place of any before. The line printed is `line`, or else `what`.

        Texts that differ only in their numbers are one kind of work.
        """
        kind = re.sub(r"[\d,.]+", "", what)
        if kind in self.told:
            self.end()
            return
        self.line, self.kind, self.began = line or what, kind, time.monotonic()
        if self.timer is None:
            self._look_after(LONG_S)

    def end(self) -> None:
        """End the work, or leave it to report for itself."""
        self.line = ""

    def _look_after(self, seconds: float) -> None:
        self.timer = threading.Timer(seconds, self._look)
        self.timer.daemon = True
        self.timer.start()

    def _look(self) -> None:
        self.timer = None
        line, left = self.line, LONG_S - (time.monotonic() - self.began)
        if line and left > 0:  # this work began after the timer was started
            self._look_after(left)
        elif line:
            self.told.add(self.kind)
            self.end()
            self.say(line)
