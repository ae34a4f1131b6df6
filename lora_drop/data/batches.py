"""Batches: the rows that are computed together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow.compute
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from lora_drop.errors import UserError

MEGABATCH = 50


def split_batch(total: int, device_limit: int | None, devices: int = 1) -> tuple[int, int]:
    """Return (examples at a time, accumulation steps) of a device: together as many as its part of the `total`.

    The first is as large as allowed. Where devices have parts of different size, it is that of the largest. Raises
    UserError if there is not a row for each device.
    """
    if total < devices:
        raise UserError(
            f"A batch of {total} rows leaves {devices - total} of {devices} processes without one. Start fewer, or raise "
            "train.batch_size (or warmup.batch_size)."
        )
    own = math.ceil(total / devices)
    at_a_time = next(size for size in range(min(device_limit or own, own), 0, -1) if own % size == 0)
    return at_a_time, own // at_a_time


def row_lengths(rows: Dataset) -> list[int]:
    """Return the number of tokens of each row. (Counted by arrow: to unpack a large task takes Python seconds.)"""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist()


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


@dataclass(frozen=True)
class Part:
    """The rows that a device computes at a time."""

    rows: list[int]
    weight: float
    """Of their mean in that of all parts of the batch: 1 where all have as many rows, 0 for a stand-in."""


class Parts(Sampler[Part]):
    """The batches of an epoch, as one of several devices computes them.

    The rows of a batch are dealt by length, so that devices have alike numbers of tokens, and each device goes through
    its own in parts. All have the same number of parts, as they wait for each other: a device without a row for one
    computes a stand-in, which counts for nothing.
    """

    def __init__(self, order: LengthGroups, at_a_time: int, devices: int = 1, device: int = 0):
        """Part the batches of `order` for `device` of `devices`, `at_a_time` rows in a part."""
        self.sampler, self.at_a_time, self.devices, self.device = order, at_a_time, devices, device

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.sampler.batch_size)
        return whole * self._count(self.sampler.batch_size) + self._count(rest)

    def __iter__(self) -> Iterator[Part]:
        rows = iter(self.sampler)
        while batch := list(islice(rows, self.sampler.batch_size)):
            own = [row for place, row in enumerate(batch) if self._takes(place)]
            count = self._count(len(batch))
            for start in range(0, count * self.at_a_time, self.at_a_time):
                part = own[start : start + self.at_a_time]
                yield Part(part or batch[-1:], len(part) * count * self.devices / len(batch))

    def _takes(self, place: int) -> bool:
        """Deal there and back (0 1 1 0 0 1 …): rows come by length, and the first device would have the longest of each round."""
        round_, turn = divmod(place, self.devices)
        return self.device == (turn if round_ % 2 == 0 else self.devices - 1 - turn)

    def _count(self, rows: int) -> int:
        """Return in how many parts a device goes through its rows of a batch."""
        return math.ceil(math.ceil(rows / self.devices) / self.at_a_time)
