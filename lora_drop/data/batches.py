"""Group rows into batches."""

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
    """Return a device's (examples at a time, accumulation steps), whose product is its part of the `total`.

    The first is the largest divisor of that part within `device_limit`. If the devices have parts of different size,
    the largest part counts. Raise UserError if there are fewer rows than devices.
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
    """Return the number of tokens of each row. (Arrow counts them: unpacking a large task takes Python seconds.)"""
    return pyarrow.compute.list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist()


class LengthGroups(Sampler[int]):
    """Row order of an epoch: batches of similar lengths, which need little padding, in random order.

    The first epoch begins with the longest of the full batches, so that running out of memory shows at once. The order
    depends only on seed and epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        """Order rows of these lengths into batches of `batch_size`."""
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each one."""
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
class MicroBatch:
    """The part of a batch that a device computes at a time."""

    rows: list[int]
    weight: float
    """Weight of the rows' mean when averaging over the parts of a batch: 1 if all have the same number of rows, 0 for a
    stand-in."""


class MicroBatches(Sampler[MicroBatch]):
    """The batches of an epoch, as computed by one of several devices.

    The rows of a batch are dealt by length, so that devices have similar numbers of tokens, and each device computes
    its rows in parts. All devices have the same number of parts, as they wait for each other. A device with no row left
    for a part computes a stand-in of weight 0.
    """

    def __init__(self, order: LengthGroups, at_a_time: int, devices: int = 1, device: int = 0):
        """Split the batches of `order` for `device` of `devices`, with `at_a_time` rows in a part."""
        self.sampler, self.at_a_time, self.devices, self.device = order, at_a_time, devices, device

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.sampler.batch_size)
        return whole * self._count(self.sampler.batch_size) + self._count(rest)

    def __iter__(self) -> Iterator[MicroBatch]:
        rows = iter(self.sampler)
        while batch := list(islice(rows, self.sampler.batch_size)):
            own = [row for place, row in enumerate(batch) if self._takes(place)]
            count = self._count(len(batch))
            for start in range(0, count * self.at_a_time, self.at_a_time):
                part = own[start : start + self.at_a_time]
                yield MicroBatch(part or batch[-1:], len(part) * count * self.devices / len(batch))

    def _takes(self, place: int) -> bool:
        """Deal rows in alternating directions (0 1 1 0 0 1 …).

        As rows are sorted by length, the first device would otherwise get the longest of each round.
        """
        round_, turn = divmod(place, self.devices)
        return self.device == (turn if round_ % 2 == 0 else self.devices - 1 - turn)

    def _count(self, rows: int) -> int:
        """Return the number of parts in which a device computes its rows of a batch."""
        return math.ceil(math.ceil(rows / self.devices) / self.at_a_time)
