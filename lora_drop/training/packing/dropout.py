"""Dropout with masks that cost little on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CHEAP = (torch.float32, torch.bfloat16)


def keep_mask(shape: Sequence[int], p: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """Return a mask on the CPU, 0 with probability `p`, to the nearest 1/65536, else 1; and the factor that keeps the mean.

    Its seed is the next number of torch's global generator: it is as reproducible as torch's own masks, and continues with a checkpoint.
    """
    count, dropped = int(np.prod(shape)), min(round(p * 65536), 65535)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count])
    keep = torch.ge(bits, dropped - 32768, out=torch.empty(count, dtype=dtype))
    return keep.view(*shape), 65536 / (65536 - dropped)


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
    """Return what `nn.Dropout` returns: each element 0 with probability `p`, else divided by 1 - p, while training."""
    cheap = module.training and 0 < module.p < 1 and not module.inplace and x.dtype in CHEAP
    return _Dropout.apply(x, module.p) if cheap else functional.dropout(x, module.p, module.training, module.inplace)
