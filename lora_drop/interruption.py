"""The signals that ask a process to end: Ctrl-C (SIGINT), a scheduler's SIGTERM, a lost terminal's SIGHUP."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals available here: Windows has no SIGHUP."""


class Stopped(SystemExit):
    """Raised on SIGTERM or SIGHUP. The exit code is the one that shells report for the signal: 143 or 129."""

    def __init__(self, number: int):
        """`number` is the signal's number."""
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


def raise_for(number: int) -> None:
    """Raise the exception for a signal: KeyboardInterrupt for Ctrl-C, Stopped for any other, none for 0."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number:
        raise Stopped(number)


_owned = False


def end_at_once() -> None:
    """Let signals end this process at once and silently, except inside `stoppable`, where work may be lost.

    This is for a command's process while it loads libraries: during an import, a KeyboardInterrupt may turn into
    another error, or be printed and lost.
    """
    global _owned
    _owned = True
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os._exit(128 + number))


def ends_at_once() -> bool:
    """Return True in a process that only runs one command, unlike a notebook or a test."""
    return _owned


@contextmanager
def at_once(close: Callable[[], None]) -> Iterator[None]:
    """Let signals end a command's process at once while the block, inside a `stoppable` one, loads libraries.

    `close` is called first, to restore the terminal.
    """

    def end(number: int, _: Any) -> None:
        try:
            close()
        finally:
            os._exit(128 + number)

    with _caught(ENDING if _owned else (), end):
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, and SIGTERM and SIGHUP raise Stopped, while the block runs.

    Python prints and discards an exception that is raised in a destructor, so the signal is then sent again.
    """
    before = sys.unraisablehook
    sys.unraisablehook = partial(_sent_again, before)
    try:
        with _caught(ENDING, lambda number, _: raise_for(number)):
            yield
    finally:
        sys.unraisablehook = before


def _sent_again(otherwise: Callable[[Any], object], ignored: Any) -> None:
    stop = ignored.exc_value
    if not isinstance(stop, (KeyboardInterrupt, Stopped)):
        otherwise(ignored)
        return
    number = signal.Signals[stop.signal] if isinstance(stop, Stopped) else signal.SIGINT
    again = threading.Timer(0.01, signal.raise_signal, [number])  # by then the destructor has ended
    again.daemon = True
    again.start()


@contextmanager
def first_signal(answer: Callable[[int], None]) -> Iterator[None]:
    """Pass the first signal during the block to `answer`; a second one ends the work at once."""

    def first(number: int, _: Any) -> None:
        answer(number)
        for each in ENDING:
            if signal.getsignal(each) is first:
                signal.signal(each, lambda number, _: raise_for(number))

    with _caught(ENDING, first):
        yield


@contextmanager
def _caught(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle signals, except those that are ignored (nohup). Outside the main thread, do nothing."""
    before = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    except ValueError:  # another thread
        pass
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
