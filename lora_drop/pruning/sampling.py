"""Stage 1: a stratified sample of the training set. A share α = 0.1 is enough to rank the layers (paper §3.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lora_drop.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A stratified sample: `indices` of rows, ascending; `strata` maps a name to (rows there are, rows sampled)."""

    indices: tuple[int, ...]
    strata: dict[str, tuple[int, int]]

    @property
    def absent(self) -> list[str]:
        """Strata that are too small for a row of this sample."""
        return [name for name, (_, taken) in self.strata.items() if not taken]


def stratified_sample(strata: Sequence[str], size: int, seed: int) -> Sample:
    """Draw exactly `size` rows, of each stratum its share, rounded by largest remainder.

    Args:
        strata: the stratum of each row of the population.
        size: rows to draw. Where there are more strata than that, some get no row.
        seed: decides which rows of a stratum, and which of two equal remainders; the same arguments give the same rows
            everywhere.

    Raises:
        UserError: if there are no rows, or `size` is not between 1 and the number of rows.
    """
    if not strata:
        raise UserError("There are no rows to sample from.")
    if not 1 <= size <= len(strata):
        raise UserError(f"Cannot sample {size} of {len(strata)} rows: give a number between 1 and {len(strata)}.")
    rows: dict[str, list[int]] = {name: [] for name in sorted(set(strata))}
    for index, name in enumerate(strata):
        rows[name].append(index)
    taken = {name: size * len(rows[name]) // len(strata) for name in rows}
    generator = random.Random(seed)
    by_chance = generator.sample(list(rows), len(rows))  # sorting is stable: this is the order of equal remainders
    by_remainder = sorted(by_chance, key=lambda name: size * len(rows[name]) % len(strata), reverse=True)
    for name in by_remainder[: size - sum(taken.values())]:
        taken[name] += 1
    indices = sorted(index for name in rows for index in generator.sample(rows[name], taken[name]))
    return Sample(tuple(indices), {name: (len(rows[name]), taken[name]) for name in rows})
