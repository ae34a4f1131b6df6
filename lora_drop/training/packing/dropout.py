"""Dropout with masks that are cheap to draw on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CHEAP = (torch.float32, torch.bfloat16)


def keep_mask(shape: Sequence[int], p: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """Return a mask on the CPU and the factor that preserves the mean.

    Each element is 0 with probability `p` (capped at 255/256), else 1. One random byte per element resolves only
    multiples of 1/256, so the threshold of a mask is drawn from the two integers next to 256 p. Each element is thus 0
    with probability exactly `p`. The seed is the next number of torch's global generator: masks are as reproducible as
    torch's own, and survive a checkpoint.
    """
    count, p = int(np.prod(shape)), min(p, 255 / 256)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    drawn = np.random.SFC64(seed).random_raw(1 + -(-count // 8))
    threshold = int(256 * p) + (int(drawn[0]) / 2**64 < 256 * p % 1)
    keep = torch.ge(
        torch.from_numpy(drawn[1:].view(np.int8)[:count]), threshold - 128, out=torch.empty(count, dtype=dtype)
    )
    return keep.view(*shape), 1 / (1 - p)


def masked(x: Tensor, mask: Tensor, factor: float) -> Tensor:
    """Return factor · mask · `x` in one pass."""
    return torch.addcmul(x.new_zeros(()), x, mask, value=factor)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.factor = keep_mask(x.shape, p, x.dtype)
        ctx.save_for_backward(mask)
        return masked(x, mask, ctx.factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return masked(gradients[0], mask, ctx.factor), None


def dropout_forward(module: nn.Dropout, x: Tensor) -> Tensor:
    """Return the same as `nn.Dropout`: in training, each element is 0 with probability `p`, else divided by 1 - p."""
    cheap = module.training and 0 < module.p < 1 and not module.inplace and x.dtype in CHEAP
    return _Dropout.apply(x, module.p) if cheap else functional.dropout(x, module.p, module.training, module.inplace)
