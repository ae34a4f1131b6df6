"""Claims about two rows of a table, judged by paired differences: the same task and seed, one row against the other.

A claim says that a row is better than another, or, with a margin, that it is worse by less than the margin. The mean
difference has a 95 % interval by the bootstrap: pairs of task and seed are drawn with replacement, and the interval is
widened as few pairs need it (Hesterberg, arXiv 1411.5279). A claim is *held* if
the whole interval says so, *not held* if the whole interval says the contrary, and *undecided* else. Tasks in which
nothing was learnt take no part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table

RESAMPLES = 10_000
OUTSIDE = 0.025
"""Probability of either side of an interval."""
FEWEST = 5
"""Fewer pairs than this decide nothing: resamples of them are nearly always the same few."""


@dataclass(frozen=True)
class Verdict:
    """A claim, and what was measured of it."""

    text: str
    row: str
    """Titles of the row and of that which it is compared with."""
    against: str
    margin: float | None
    """In the table's unit; None if the row is claimed to be better."""
    differences: tuple[float, ...]
    """Of each pair, in the table's unit; positive where the row is better."""
    tasks: int
    low: float
    high: float
    """The 95 % interval of the mean difference; NaN without a pair."""

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(np.mean(self.differences))

    @property
    def verdict(self) -> str:
        """Held, not held or undecided."""
        bound = -(self.margin or 0.0)
        if len(self.differences) < FEWEST or self.low <= bound <= self.high:
            return "undecided"
        return "held" if self.low > bound else "not held"


def judge(table: Table) -> list[Verdict]:
    """Return the verdict on each claim of the table's experiment of which there is a pair."""
    titles = {row.name: row.title for row in table.rows}
    found = [_judge(table, claim, titles) for claim in table.claims.values()]
    return [verdict for verdict in found if verdict is not None]


def _judge(table: Table, claim: Mapping[str, Any], titles: Mapping[str, str]) -> Verdict | None:
    ours, theirs = (_scores(table, claim[key]) for key in ("row", "against"))
    pairs = sorted(ours.keys() & theirs.keys())
    if not pairs:
        return None
    differences = [ours[pair] - theirs[pair] for pair in pairs]
    low, high = interval(differences)
    names = titles[claim["row"]], titles[claim["against"]]
    tasks = len({task for task, _ in pairs})
    return Verdict(claim["says"], *names, claim.get("margin"), tuple(differences), tasks, low, high)


def _scores(table: Table, row: str) -> dict[tuple[str, int], float]:
    """Return the primary score of each task and seed, of the epoch kept, in the table's unit."""
    learnt = {column.task for column in table.columns if column.learnt}
    mine: list[Record] = [each for each in table.records if each.row == row and each.metrics and each.task in learnt]
    return {(each.task, each.seed): each.unit * each.metrics[each.primary] for each in mine}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean by the expanded percentile bootstrap, the same at each call; of one value, that value.

    Resamples of few values vary too little, by √((n - 1) / n), and know nothing of Student's t: of five normal values the
    plain percentiles hold the mean 85 times in 100. So percentiles farther out are taken, by both.
    """
    from scipy import stats

    count, values = len(differences), np.asarray(differences)
    if count < 2:
        return values[0], values[0]
    outside = stats.norm.sf(math.sqrt(count / (count - 1)) * stats.t.ppf(1 - OUTSIDE, count - 1))
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile(values[draws].mean(axis=1), (outside, 1 - outside))
    return float(low), float(high)
