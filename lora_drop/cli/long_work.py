"""A line for long work that says nothing of itself: loading a model, starting torch."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

LONG_S = 5.0
"""After this time work counts as long."""


class LongWork:
    """Says what is under way when it has taken long, once for each kind of work. A timer does it: nothing else calls."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.line, self.kind, self.began = "", "", 0.0
        self.told: set[str] = set()
        self.timer: threading.Timer | None = None

    def begin(self, what: str, line: str = "") -> None:
        """Work has begun, in place of any before; `line` is said of it, else `what`. Numbers in `what` make no new kind."""
        kind = re.sub(r"[\d,.]+", "", what)
        if kind in self.told:
            self.end()
            return
        self.line, self.kind, self.began = line or what, kind, time.monotonic()
        if self.timer is None:
            self._look_after(LONG_S)

    def end(self) -> None:
        """It is over, or speaks for itself."""
        self.line = ""

    def _look_after(self, seconds: float) -> None:
        self.timer = threading.Timer(seconds, self._look)
        self.timer.daemon = True
        self.timer.start()

    def _look(self) -> None:
        self.timer = None
        line, left = self.line, LONG_S - (time.monotonic() - self.began)
        if line and left > 0:  # it has begun later than what the timer was started for
            self._look_after(left)
        elif line:
            self.told.add(self.kind)
            self.end()
            self.say(line)
