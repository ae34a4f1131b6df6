"""What is said of repeated measurements: the median and the middle half, never a mean that one disturbed round can move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median of some measurements and their quartiles."""

    median: float
    low: float
    """A quarter of the measurements are below."""
    high: float
    """A quarter of the measurements are above."""
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles, interpolated between neighbours where they fall between two."""
    low, median, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return Spread(median, low, high, len(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of above/below ROUND BY ROUND: what disturbs a machine disturbs both, so the ratio moves less than either."""
    return spread([one / other for one, other in zip(above, below, strict=True)])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the e of cost ≈ c·size^e, by least squares over the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    slope, _ = np.polyfit(x, y, 1)
    return float(slope)
