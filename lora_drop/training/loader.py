"""The batches of a training as the Trainer reads them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import Dataset

from lora_drop.data.batches import Part, Parts
from lora_drop.data.completions import IGNORED
from lora_drop.data.sentences import Collate

WEIGHT = "weight"
"""Key of a batch: see `data.batches.Part`."""


class _Rows(Dataset[Any]):
    """Rows that are read part by part."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, part: Part) -> tuple[Part, list[dict]]:
        return part, self.rows.__getitems__(part.rows)


def loader(
    rows: Any, collate: Collate, parts: Parts, summed: bool, device: torch.device, pin_memory: bool
) -> DataLoaderShard:
    """Return the batches of this process. They are its own already, so accelerate is not to deal them out.

    Args:
        rows: tokenised rows.
        collate: makes a batch of them.
        parts: which rows go together.
        summed: the loss is a sum over labels, divided by the number of those of all processes: those of a stand-in are
            hidden. Else it is a mean, which WEIGHT is for.
        device: where batches go.
        pin_memory: see torch's DataLoader.
    """

    def batch(given: tuple[Part, list[dict]]) -> dict[str, Any]:
        part, chosen = given
        made = dict(collate(chosen))
        if summed and not part.weight:
            made["labels"] = torch.full_like(made["labels"], IGNORED)
        return {**made, WEIGHT: part.weight}

    return DataLoaderShard(
        _Rows(rows), device=device, batch_sampler=parts, collate_fn=batch, pin_memory=pin_memory, num_workers=0
    )
