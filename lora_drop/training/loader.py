"""The training batches as the Trainer reads them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import Dataset

from lora_drop.data.batches import MicroBatch, MicroBatches
from lora_drop.data.completions import IGNORED
from lora_drop.data.sentences import Collate

WEIGHT = "weight"
"""Key of the weight in a batch; see `data.batches.MicroBatch`."""


class _Rows(Dataset[Any]):
    """Rows that are read one part at a time."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, part: MicroBatch) -> tuple[MicroBatch, list[dict]]:
        return part, self.rows.__getitems__(part.rows)


def loader(
    rows: Any, collate: Collate, parts: MicroBatches, summed: bool, device: torch.device, pin_memory: bool
) -> DataLoaderShard:
    """Return the batches of this process. They are already split by process, so accelerate must not split them again.

    Args:
        rows: Tokenised rows.
        collate: Makes a batch of rows.
        parts: The rows of each batch.
        summed: True if the loss is a sum over labels, divided by the number of labels of all processes; the labels of a
            stand-in are then masked. Otherwise the loss is a mean, to be multiplied by WEIGHT.
        device: Device that batches are moved to.
        pin_memory: See torch's DataLoader.
    """

    def batch(given: tuple[MicroBatch, list[dict]]) -> dict[str, Any]:
        part, chosen = given
        made = dict(collate(chosen))
        if summed and not part.weight:
            made["labels"] = torch.full_like(made["labels"], IGNORED)
        return {**made, WEIGHT: part.weight}

    return DataLoaderShard(
        _Rows(rows), device=device, batch_sampler=parts, collate_fn=batch, pin_memory=pin_memory, num_workers=0
    )
