"""Means over tasks of values measured with several seeds, with their intervals.

Each task has the same weight, however many seeds it has. Two questions have an interval each. How far would other seeds
move the mean on these tasks? And what would the mean be on other, similar tasks? Runs of one task are similar, so
counting runs cannot answer the second question.

Intervals are Student's: with three seeds a bootstrap has too few values to draw from (with three normal values, its
percentile interval contains the mean three times in four).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

OUTSIDE = 0.025
"""Probability beyond each end of an interval."""
MOST_SEEDS = 100
Interval = tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """A mean over tasks."""

    value: float
    tasks: tuple[str, ...]
    """Tasks that take part."""
    here: Interval | None
    """95 % interval on these tasks, for other seeds; None unless each has several."""
    elsewhere: Interval | None
    """95 % interval for other tasks; None for a single task."""


def mean_over_tasks(values: Mapping[str, Sequence[float]]) -> Mean:
    """Return the mean over tasks of their means over seeds.

    A task with a single seed does not show how far seeds differ, and is left out if other tasks have several.

    Args:
        values: by task, one value for each seed; at least one task.
    """
    several = {task: found for task, found in values.items() if len(found) > 1}
    taken = several or values
    means = [fmean(found) for found in taken.values()]
    value = fmean(means)
    here = _welch(value, [(variance(sample), len(sample)) for sample in several.values()]) if several else None
    elsewhere = _around(value, variance(means) / len(means), len(means) - 1) if len(means) > 1 else None
    return Mean(value, tuple(taken), here, elsewhere)


def seeds_to_tell(values: Mapping[str, Sequence[float]], bound: float) -> int | None:
    """Return the seeds per task that would separate the mean from `bound` if mean and spreads stay the same.

    None if that takes more than MOST_SEEDS, or if no task has several seeds.
    """
    found = mean_over_tasks(values)
    samples = [values[task] for task in found.tasks]
    if found.here is None:
        return None
    spreads = [variance(sample) for sample in samples]
    for seeds in range(2, MOST_SEEDS + 1):
        low, high = _welch(found.value, [(spread, seeds) for spread in spreads])
        if not low <= bound <= high:
            return seeds
    return None


def _welch(value: float, samples: Sequence[tuple[float, int]]) -> Interval:
    """Return the interval of a mean of sample means, given (variance, size) of each sample (Welch, Satterthwaite).

    The samples may differ in variance.
    """
    parts = [spread / size for spread, size in samples]
    weighted = sum(part**2 / (size - 1) for part, (_, size) in zip(parts, samples, strict=True))
    degrees = sum(parts) ** 2 / weighted if weighted else math.inf
    return _around(value, sum(parts) / len(parts) ** 2, degrees)


def _around(value: float, square: float, degrees: float) -> Interval:
    """Return the interval of a mean, given the square of its standard error."""
    from scipy import stats

    half = float(stats.t.isf(OUTSIDE, degrees)) * math.sqrt(square)
    return value - half, value + half
