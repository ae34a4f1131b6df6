"""Batches: the rows that are computed together."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.compute
import torch
from datasets import Dataset
from torch.utils.data import Sampler

MEGABATCH = 50


def split_batch(total: int, device_limit: int | None) -> tuple[int, int]:
    """Return (examples at a time, accumulation steps): their product is `total`, the first as large as allowed."""
    at_a_time = next(size for size in range(min(device_limit or total, total), 0, -1) if total % size == 0)
    return at_a_time, total // at_a_time


def row_lengths(rows: Dataset) -> list[int]:
    """Return the number of tokens of each row. (Counted by arrow: to unpack a large task takes Python seconds.)"""
    lengths: list[int] = pyarrow.compute.list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist()
    return lengths


class LengthGroups(Sampler[int]):
    """Row order of an epoch: batches of similar length, in random order; the very first is the longest.

    So padding is small, and running out of memory shows at once. The order is a function of seed and epoch alone.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        """Order rows of these lengths in batches of `batch_size`."""
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        megabatch = self.batch_size * MEGABATCH
        grouped = [
            index
            for start in range(0, len(order), megabatch)
            for index in self._by_length(order[start : start + megabatch])
        ]
        batches = [grouped[start : start + self.batch_size] for start in range(0, len(grouped), self.batch_size)]
        *whole, last = batches  # only the last batch may be smaller: it stays last
        shuffled = [whole[position] for position in torch.randperm(len(whole), generator=generator).tolist()]
        if self.epoch == 0 and shuffled:
            longest = max(
                range(len(shuffled)), key=lambda position: max(self.lengths[index] for index in shuffled[position])
            )
            shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
        return (index for batch in [*shuffled, last] for index in batch)

    def _by_length(self, indices: list[int]) -> list[int]:
        return sorted(indices, key=lambda index: -self.lengths[index])
