"""What the machine's matrix products reach: the roof under which training runs."""

from __future__ import annotations

import time

import torch

from bench.rounds import Action, Sample, wait

REPEATS = 5


def best_product(size: int, dtype: torch.dtype, device: torch.device) -> Action:
    """Return the action that measures the fastest of a few products of two matrices `size` × `size`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def action(memory: bool) -> Sample:
        return Sample(min(_seconds(left, right, device) for _ in range(REPEATS)))

    return action


def _seconds(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    left @ right
    wait(device)
    return time.perf_counter() - began


def product_size(device: torch.device, quick: bool) -> int:
    """Return a size at which a product is neither over at once nor takes longer than it must."""
    return 128 if quick else 8192 if device.type == "cuda" else 1536
