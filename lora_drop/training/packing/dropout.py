"""Dropout with masks that cost little on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def keep_mask(shape: Sequence[int], p: float) -> Tensor:
    """Return a float mask on the CPU: 0 with probability `p`, to the nearest 1/65536, else what keeps the mean at 1.

    Its seed is the next number of torch's global generator: it is as reproducible as torch's own masks, and continues with a checkpoint.
    """
    count, dropped = int(np.prod(shape)), min(round(p * 65536), 65535)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]
    keep = (torch.from_numpy(bits) >= dropped - 32768).view(*shape)
    return keep.to(torch.float32).mul_(65536 / (65536 - dropped))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = keep_mask(x.shape, p)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None


def dropout_forward(module: nn.Dropout, x: Tensor) -> Tensor:
    """Return what `nn.Dropout` returns: each element 0 with probability `p`, else divided by 1 - p, while training."""
    cheap = module.training and 0 < module.p < 1 and not module.inplace and x.dtype == torch.float32
    return _Dropout.apply(x, module.p) if cheap else functional.dropout(x, module.p, module.training, module.inplace)
