"""Interleaved rounds: in each, everything that is compared is measured once, in an order that changes from round to round.

Another load on the machine, or its clock, then meets all alike, and a ratio taken round by round says more than one of two separate runs.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_drop.bench.machine import LoadMeter
from lora_drop.runs import peak_memory_mb, reset_peak_memory, resident_memory_mb

NOISY = 0.25
"""Cores kept busy by others, from which a round is marked."""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    seconds: float
    memory_mb: int = 0
    """Of a GPU the peak; else the peak above what was resident before."""


Action = Callable[[], Sample]


@dataclass(frozen=True)
class Rounds:
    """What all rounds have measured."""

    samples: Mapping[str, Sequence[Sample]]
    """Per name, one per round."""
    orders: Sequence[Sequence[str]]
    load: Sequence[float | None]
    """Cores kept busy by others during each round; None where the system does not say."""

    def seconds(self, name: str) -> list[float]:
        """Return the seconds of each round."""
        return [sample.seconds for sample in self.samples[name]]

    def memory_mb(self, name: str) -> int:
        """Return the largest peak of all rounds."""
        return max(sample.memory_mb for sample in self.samples[name])

    @property
    def noisy(self) -> list[int]:
        """The rounds (from 0) that others have disturbed."""
        return [number for number, load in enumerate(self.load) if load is not None and load > NOISY]

    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured."""
        return {
            "seconds": {name: self.seconds(name) for name in self.samples},
            "memory_mb": {name: self.memory_mb(name) for name in self.samples},
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
    """Measure every action once for warm-up, which is not kept, then once in each round; `tell(done)` after each of them all."""
    for number, action in enumerate(actions.values(), 1):
        action()
        tell(number)
    samples: dict[str, list[Sample]] = {name: [] for name in actions}
    load: list[float | None] = []
    planned = orders(list(actions), rounds)
    for number, order in enumerate(planned, 1):
        meter = LoadMeter()
        for place, name in enumerate(order, 1):
            samples[name].append(actions[name]())
            tell(number * len(order) + place)
        load.append(meter.others())
    return Rounds(samples, planned, load)


def timed(prepare: Callable[[], Callable[[], object]], device: torch.device) -> Action:
    """Return the action that prepares work, untimed, and measures the call of what `prepare` returns."""

    def action() -> Sample:
        work = prepare()
        _settle(device)
        on_gpu = device.type == "cuda"
        before = 0 if on_gpu else resident_memory_mb()
        reset_peak_memory()
        began = time.perf_counter()
        work()
        wait(device)
        return Sample(time.perf_counter() - began, max(0, peak_memory_mb() - before))

    return action


def wait(device: torch.device) -> None:
    """Let the device finish what it was given: a GPU works while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _settle(device: torch.device) -> None:
    """Give back what earlier measurements have freed, so that the memory of this one is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory otherwise
        if trim is not None:
            trim(0)
    wait(device)
