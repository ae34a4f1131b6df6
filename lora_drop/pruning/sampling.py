"""Stage 1: a stratified sample of the training set. A share α = 0.1 is enough to rank the layers (paper §3.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lora_drop.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A stratified sample: `indices` of rows, ascending; `strata` maps a name to (rows available, rows sampled)."""

    indices: tuple[int, ...]
    strata: dict[str, tuple[int, int]]

    @property
    def absent(self) -> list[str]:
        """Strata too small to get a row of this sample."""
        return [name for name, (_, taken) in self.strata.items() if not taken]


def stratified_sample(strata: Sequence[str], size: int, seed: int) -> Sample:
    """Draw exactly `size` rows, in proportion to the strata, rounded by largest remainder.

    Args:
        strata: the stratum of each row of the population.
        size: number of rows to draw. If there are more strata than rows to draw, some get none.
        seed: decides the rows of each stratum, and the order of equal remainders. The same arguments give the same rows
            on every machine.

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
    by_chance = generator.sample(list(rows), len(rows))  # the order of equal remainders, as sorting is stable
    by_remainder = sorted(by_chance, key=lambda name: size * len(rows[name]) % len(strata), reverse=True)
    for name in by_remainder[: size - sum(taken.values())]:
        taken[name] += 1
    indices = sorted(index for name in rows for index in generator.sample(rows[name], taken[name]))
    return Sample(tuple(indices), {name: (len(rows[name]), taken[name]) for name in rows})
