"""Interleaved rounds: each measures every compared action once, in a different order.

Other load on the machine, or a changing clock, then affects all actions equally: a ratio taken within a round varies
less than either of its sides.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil
import torch

NOISY = 0.25
"""Number of cores kept busy by other processes above which a round counts as disturbed."""
FEWEST = 2
"""Rounds that are measured however long they take: a single one has no spread."""
Action = Callable[[], float]
"""Measures once and returns seconds (of a product: seconds per floating-point operation)."""
Spread = dict[str, float]
"""`median`, and the quartiles `low` and `high`: one disturbed round moves a mean but hardly moves these."""


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles, interpolated between neighbours."""
    return dict(zip(("low", "median", "high"), map(float, np.quantile(values, (0.25, 0.5, 0.75))), strict=True))


@dataclass(frozen=True)
class Rounds:
    """The measurements of all rounds."""

    seconds: Mapping[str, Sequence[float]]
    """One number per round, by name."""
    orders: Sequence[Sequence[str]]
    load: Sequence[float]
    """Number of cores that other processes kept busy during each round."""

    def ratio(self, above: str, below: str) -> Spread:
        """Return the spread of seconds(above) / seconds(below), taken round by round."""
        return spread([one / two for one, two in zip(self.seconds[above], self.seconds[below], strict=True)])

    def rate(self, name: str, amount: float) -> Spread:
        """Return the spread of amount / seconds."""
        return spread([amount / value for value in self.seconds[name]])

    def to_json(self) -> dict[str, Any]:
        """Return everything that was measured, and which rounds other processes disturbed."""
        return {**asdict(self), "noisy_rounds": [number for number, load in enumerate(self.load) if load > NOISY]}


def interleave(
    actions: Mapping[str, Action], rounds: int, tell: Callable[[int, int], None], limit: float = math.inf
) -> Rounds:
    """Call every action once as an uncounted warm-up, then once in each round, in random order.

    `tell(done, total)` is called after each action. After the first FEWEST rounds, no round begins that would end more
    than `limit` seconds after the start if it took as long as the last. Imported libraries are excluded from garbage
    collection: every training starts some collections, which would take half a second each.
    """
    start = time.perf_counter()
    orders = [list(actions), *(random.Random(number).sample(list(actions), len(actions)) for number in range(rounds))]
    found: list[dict[str, float]] = []
    load = []
    gc.collect()
    gc.freeze()
    try:
        for order in orders:
            began, others = time.perf_counter(), _other_seconds()
            found.append({})
            for name in order:
                found[-1][name] = actions[name]()
                tell((len(found) - 1) * len(order) + len(found[-1]), len(orders) * len(order))
            now = time.perf_counter()
            load.append(max(0.0, round((_other_seconds() - others) / (now - began), 3)))
            if len(found) > FEWEST and (now - start) + (now - began) > limit:
                break
    finally:
        gc.unfreeze()
    return Rounds({name: [one[name] for one in found[1:]] for name in actions}, orders[1 : len(found)], load[1:])


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    began = now(device)
    work()
    return now(device) - began


def now(device: torch.device) -> float:
    """Return the time in seconds, after waiting for a GPU, which works asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _other_seconds() -> float:
    """Return the seconds that all cores have worked for processes other than this one and its children."""
    busy, own = psutil.cpu_times()._asdict(), psutil.Process().cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq")  # waiting for a disk is not work
    return sum(busy.get(kind, 0.0) for kind in kinds) - sum(own[:4])
