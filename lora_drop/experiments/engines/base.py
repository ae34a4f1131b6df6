"""The interface of an engine: it takes runs while it has room, and reports how they ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lora_drop.experiments.grid import Planned
from lora_drop.experiments.one_run import End
from lora_drop.progress import Reporter

Line = Callable[[], Reporter]
"""Returns the reporter of a run; called when the run is really under way."""


class Engine(Protocol):
    """Performs runs somewhere. Leaving its context ends everything it started; runs under way write a checkpoint."""

    @property
    def free(self) -> bool:
        """True if another run may be handed over now."""

    @property
    def working(self) -> bool:
        """True if a run that was handed over has not ended."""

    def begin(self, number: int, run: Planned, line: Line) -> None:
        """Take a run, identified by its number in the grid."""

    def ended(self, timeout: float) -> list[tuple[int, End]]:
        """Return the runs that have ended, by number; wait at most `timeout` seconds for one.

        An engine that performs runs in this process takes as long as they need.
        """

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...
