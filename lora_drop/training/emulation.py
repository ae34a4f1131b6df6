"""Half-precision products on a CPU that has no instructions for them.

torch computes them there by general code, in 9 to 36 times the time of fp32 products (bf16 on a Zen 3). Here a product
of half-precision matrices is computed in fp32 and its result is rounded. The instructions do the same: they multiply
rounded numbers and add in fp32. So a CPU without them gives the numbers of one with them, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
"""Operators that return new half-precision tensors."""
IN_PLACE = {aten.addmm_.default: aten.addmm.default, aten.baddbmm_.default: aten.baddbmm.default}
"""Operators that change their first argument, and those that return a new tensor instead."""
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
"""Returns the output, and sums that its backward pass needs in fp32."""


class Emulation(TorchDispatchMode):
    """Computes the half-precision products of a CPU in fp32 inside the context, in forward and backward passes."""

    def __init__(self, half: torch.dtype):
        """Compute products of type `half` (bfloat16 or float16)."""
        super().__init__()
        self.half = half

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = func in PRODUCTS or func in IN_PLACE or func is ATTENTION
        if not known or not self._computes(args[0]):
            return func(*args, **kwargs)
        found = IN_PLACE.get(func, func)(*tree_map(self._widened, args), **tree_map(self._widened, kwargs))
        if func in IN_PLACE:
            return args[0].copy_(found)
        if func is ATTENTION:
            return self._rounded(found[0]), *found[1:]
        return tree_map(self._rounded, found)

    def _computes(self, value: Tensor) -> bool:
        return value.dtype == self.half and value.device.type == "cpu"

    def _widened(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self.half else value

    def _rounded(self, value: Any) -> Any:
        return value.to(self.half) if isinstance(value, Tensor) else value
