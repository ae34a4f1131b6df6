"""Interleaved rounds: in each, everything that is compared is measured once, in an order that changes from round to round.

Another load on the machine, or its clock, then meets all alike, and a ratio taken round by round says more than one of two separate runs.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.machine import LoadMeter
from lora_drop.provenance import peak_memory_mb, reset_peak_memory, resident_memory_mb

NOISY = 0.25
"""Cores kept busy by others, from which a round is marked."""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    seconds: float
    memory_mb: int | None = None
    """Of a GPU the peak; else the peak above what was resident before; None if it was not measured."""


Action = Callable[[bool], Sample]
"""Measures once; also the memory if it is given True, which may cost time."""


@dataclass(frozen=True)
class Rounds:
    """What all rounds have measured."""

    samples: Mapping[str, Sequence[Sample]]
    """Per name, one per round."""
    orders: Sequence[Sequence[str]]
    memory_mb: Mapping[str, int | None]
    """Peak of each in the round for warm-up; in the others memory is left as it is, since to give it back would take time."""
    load: Sequence[float | None]
    """Cores kept busy by others during each round; None where the system does not say."""

    def seconds(self, name: str) -> list[float]:
        """Return the seconds of each round."""
        return [sample.seconds for sample in self.samples[name]]

    @property
    def noisy(self) -> list[int]:
        """The rounds (from 0) that others have disturbed."""
        return [number for number, load in enumerate(self.load) if load is not None and load > NOISY]

    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        return {
            "seconds": {name: self.seconds(name) for name in self.samples},
            "memory_mb": dict(self.memory_mb),
            "orders": [list(order) for order in self.orders],
            "other_load_cores": list(self.load),
            "noisy_rounds": self.noisy,
        }


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Return the order of each round: A B C, C A B, B C A, then all three reversed, and again: each is as often first as last."""
    found = []
    for number in range(rounds):
        turn, reverse = number % len(names), number // len(names) % 2
        order = [*names[len(names) - turn :], *names[: len(names) - turn]]
        found.append(order[::-1] if reverse else order)
    return found


def interleave(actions: Mapping[str, Action], rounds: int, tell: Callable[[int], None] = lambda done: None) -> Rounds:
    """Measure every action once for warm-up, of which only the memory is kept, then once in each round; `tell(done)` after each of them all.

    The warm-up goes backwards: what a process allocates once is then counted for the last action, which is ours.
    """
    with without_old_garbage():
        memory = _warm_up(actions, tell)
        _forget_garbage()  # what was imported meanwhile
        return _measure(actions, orders(list(actions), rounds), memory, tell)


def _warm_up(actions: Mapping[str, Action], tell: Callable[[int], None]) -> dict[str, int | None]:
    memory = {}
    for number, name in enumerate(reversed(list(actions)), 1):
        memory[name] = actions[name](True).memory_mb
        tell(number)
    return memory


def _measure(
    actions: Mapping[str, Action],
    planned: Sequence[Sequence[str]],
    memory: Mapping[str, int | None],
    tell: Callable[[int], None],
) -> Rounds:
    samples: dict[str, list[Sample]] = {name: [] for name in actions}
    load: list[float | None] = []
    for number, order in enumerate(planned, 1):
        meter = LoadMeter()
        for place, name in enumerate(order, 1):
            samples[name].append(actions[name](False))
            tell(number * len(order) + place)
        load.append(meter.others())
    return Rounds(samples, planned, memory, load)


@contextmanager
def without_old_garbage() -> Iterator[None]:
    """Leave what is there now out of garbage collections.

    The Trainer collects garbage whenever a training begins and ends. To look through all imported libraries takes half a second,
    once a training: nothing in an hour, but a lot in a measured call of some seconds.
    """
    _forget_garbage()
    try:
        yield
    finally:
        gc.unfreeze()


def _forget_garbage() -> None:
    gc.collect()
    gc.freeze()


def timed(prepare: Callable[[], Callable[[], object]], device: torch.device) -> Action:
    """Return the action that prepares work, untimed, and measures the call of what `prepare` returns."""

    def action(memory: bool) -> Sample:
        work = prepare()
        before = _count_anew(device) if memory else 0
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds = time.perf_counter() - began
        return Sample(seconds, max(0, peak_memory_mb() - before) if memory else None)

    return action


def wait(device: torch.device) -> None:
    """Let the device finish what it was given: a GPU works while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _count_anew(device: torch.device) -> int:
    """Give back what was freed, let the peak be counted anew, and return what is resident and no part of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory otherwise
        if trim is not None:
            trim(0)
    reset_peak_memory()
    return 0 if device.type == "cuda" else resident_memory_mb()
