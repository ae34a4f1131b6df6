"""Floating-point operations of a training pass, counted by torch on the meta device: no weights, no arithmetic.

The matrix products of the forward and backward pass on the real tokens of each row are counted. Padding and
element-wise operations are not. A causal mask hides half of attention's products; these still count, as is the
convention for a model's FLOPs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PROBED = (8, 24, 40)
"""Lengths whose operations are counted; the operations of all other lengths follow from these."""


def training_flops(model: nn.Module, lengths: Sequence[int], generates: bool) -> int:
    """Return the operations of one pass over rows of these lengths, forward and backward.

    Args:
        model: a model on the meta device with eager attention; in fused kernels torch also counts recomputed work.
        lengths: real tokens of each row.
        generates: True if the labels are tokens, False if each row has one class.
    """
    near, middle, far = PROBED
    first, second, third = (_row_flops(model, length, generates) for length in PROBED)
    total = Fraction(0)
    for length, count in Counter(lengths).items():  # a row's operations are a polynomial of degree 2 in its length
        total += count * Fraction(first * (length - middle) * (length - far), (near - middle) * (near - far))
        total += count * Fraction(second * (length - near) * (length - far), (middle - near) * (middle - far))
        total += count * Fraction(third * (length - near) * (length - middle), (far - near) * (far - middle))
    return int(total)


def _row_flops(model: nn.Module, length: int, generates: bool) -> int:
    ids = torch.ones(1, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids if generates else ids[:, 0]).loss.backward()
    return int(counter.get_total_flops())
