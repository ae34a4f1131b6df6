"""Stage 1: a stratified sample of the training set (paper §3.1: a share α = 0.1 of the data is enough to rank the layers)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_drop.errors import UserError


@dataclass(frozen=True)
class Sample:
    """Rows of a stratified sample: `indices` ascending; `strata` maps a name to (rows in the population, rows in the sample)."""

    indices: tuple[int, ...]
    strata: dict[str, tuple[int, int]]

    @property
    def raised(self) -> list[str]:
        """Strata too small for their share, which were given one row all the same."""
        population = sum(total for total, _ in self.strata.values())
        ratio = len(self.indices) / population
        return [name for name, (total, taken) in self.strata.items() if taken == 1 and total * ratio < 0.5]


def stratified_sample(strata: Sequence[str], size: int, seed: int) -> Sample:
    """Draw `size` rows so that each stratum has its share, and at least one row.

    Args:
        strata: the stratum of each row of the population.
        size: rows to draw; at least one per stratum is drawn even where that makes the sample larger.
        seed: decides which rows; the same arguments give the same rows everywhere.

    Raises:
        UserError: if there are no rows, or `size` is not between 1 and the number of rows.
    """
    if not strata:
        raise UserError("There are no rows to sample from.")
    if not 1 <= size <= len(strata):
        raise UserError(f"Cannot sample {size} of {len(strata)} rows: give a number between 1 and {len(strata)}.")
    counts = Counter(strata)
    alone = {name for name, total in counts.items() if total * size / len(strata) < 0.5 or total < 2}
    indices = _one_of_each(strata, alone, seed)
    rest = [index for index, name in enumerate(strata) if name not in alone]
    indices += _proportional(rest, strata, max(size - len(indices), 0), seed)
    drawn = Counter(strata[index] for index in indices)
    return Sample(tuple(sorted(indices)), {name: (counts[name], drawn[name]) for name in sorted(counts)})


def _one_of_each(strata: Sequence[str], names: set[str], seed: int) -> list[int]:
    """Strata that are too small to split: scikit-learn refuses them, or gives them nothing."""
    generator = random.Random(seed)
    return [
        generator.choice([index for index, stratum in enumerate(strata) if stratum == name]) for name in sorted(names)
    ]


def _proportional(rows: list[int], strata: Sequence[str], size: int, seed: int) -> list[int]:
    from sklearn.model_selection import train_test_split

    names = [strata[row] for row in rows]
    classes = len(set(names))
    if not rows or size >= len(rows):
        return rows
    size = max(size, classes)
    if len(rows) - size < classes:  # scikit-learn wants a row of each stratum on the other side of the split, too
        dropped = train_test_split(rows, train_size=max(len(rows) - size, classes), stratify=names, random_state=seed)[
            0
        ]
        return sorted(set(rows) - set(dropped[: len(rows) - size]))
    chosen, _ = train_test_split(rows, train_size=size, stratify=names, random_state=seed)
    return _none_missing(chosen, rows, strata)


def _none_missing(chosen: list[int], rows: list[int], strata: Sequence[str]) -> list[int]:
    """Add the first row of a stratum that rounding has left without any."""
    present = {strata[row] for row in chosen}
    missing = {strata[row]: row for row in reversed(rows) if strata[row] not in present}
    return chosen + list(missing.values())
