"""Products with frozen weights, which are used thousands of times and never change.

On a CPU, oneDNN computes them. A weight is reordered for oneDNN's kernel, in the precision of the pass, once for the
forward pass (W) and once for the gradient of the input (Wᵀ). The fp32 product never rounds to bf16. On a GPU, a weight
is rounded to half precision once; autocast would round it in every pass, because it caches rounded weights only of
trained parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 1024
"""Number of tokens that oneDNN optimises the weight order for; the same order works for any other number."""
LIMIT = 2**31
"""Limit in bytes on a CPU: the weights of a larger model are not kept a second and a third time."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b (`rows outputs`) by oneDNN. `weight` may be plain or reordered."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def multiplies(half: torch.dtype) -> bool:
    """Return True if oneDNN supports products of bfloat16 or float16 on this CPU.

    AVX2 alone is not enough for either, and few CPUs have float16.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    bf16 = half == torch.bfloat16
    return bool((torch.ops.mkldnn._is_mkldnn_bf16_supported if bf16 else torch.ops.mkldnn._is_mkldnn_fp16_supported)())


class Frozen:
    """The weight and bias of a linear layer that is not trained, prepared for the product."""

    def __init__(self, layer: nn.Linear, ordered: bool):
        """Wrap a layer. Its weight is prepared when first needed, and again after it has been changed.

        Args:
            layer: The layer, on its device.
            ordered: Keep the weight in oneDNN's order; otherwise only rounded.
        """
        self.layer, self.ordered = layer, ordered
        self._kept: dict[tuple[str, torch.dtype, torch.device], tuple[int, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b in the precision of `x` (`rows inputs`). Autograd can differentiate it unless `ordered`."""
        bias = None if self.layer.bias is None else self._keep("bias", x.dtype)
        return (product if self.ordered else functional.linear)(x, self._keep("forward", x.dtype), bias)

    def backward(self, gradient: Tensor) -> Tensor:
        """Return the input's gradient in the precision of the output's (`rows outputs`). Requires `ordered`."""
        return product(gradient, self._keep("backward", gradient.dtype))

    def _keep(self, what: str, dtype: torch.dtype) -> Tensor:
        """Return the bias or the weight in precision `dtype`, the weight in the order of that product if `ordered`.

        `what` is "bias", or "forward" or "backward" for the weight of that product.
        """
        source = self.layer.bias if what == "bias" else self.layer.weight
        key = (what, dtype, source.device)
        kept = self._kept.get(key)
        if kept is None or kept[0] != source._version:
            own = source.detach().to(dtype)
            if self.ordered and what != "bias":
                own = torch.ops.mkldnn._reorder_linear_weight(own.T.contiguous() if what == "backward" else own, ROWS)
            kept = source._version, own
            self._kept[key] = kept
        return kept[1]


class _Linear(torch.autograd.Function):
    """W x + b for all rows of x, with frozen W and b. Only the layer is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, half: Half) -> Tensor:
        ctx.frozen, ctx.shape = frozen, x.shape
        return frozen.forward(half(x).flatten(0, -2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.frozen.backward(gradients[0].contiguous()).view(ctx.shape), None, None


class Half:
    """Rounds inputs to the precision of products. Query, key and value share an input, which is rounded only once."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor] | None = None

    def of(self, x: Tensor) -> torch.dtype:
        """Return the precision of a product with `x`: autocast's if it is on, else that of `x`."""
        device = x.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` in the precision of a product."""
        dtype = self.of(x)
        if x.dtype == dtype:
            return x
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = x, x._version, x.to(dtype)
        return self._last[2]

    def forget(self) -> None:
        """Release the cached tensor."""
        self._last = None


def computable(x: Tensor) -> bool:
    """Return True if `x` times an fp32 weight is an fp32 or autocast half-precision product (on a CPU only bf16)."""
    device = x.device.type
    if device not in ("cpu", "cuda") or x.numel() == 0:
        return False
    if not torch.is_autocast_enabled(device):
        return x.dtype == torch.float32
    half = torch.get_autocast_dtype(device)
    return x.dtype in (torch.float32, half) and (half == torch.bfloat16 or device == "cuda")


def frozen_forward(layer: nn.Linear, frozen: Frozen, half: Half, x: Tensor) -> Tensor:
    """Return the output of a linear layer for `x`."""
    if not computable(x):
        return nn.Linear.forward(layer, x)
    if not frozen.ordered:
        return frozen.forward(half(x))
    out: Tensor = _Linear.apply(x, frozen, half)
    return out.view(*x.shape[:-1], -1)


@contextmanager
def ready(frozen: Mapping[nn.Linear, Frozen], half: Half) -> Iterator[None]:
    """Compute these layers from their prepared weights inside the context."""
    with ExitStack() as undo:
        for layer, kept in frozen.items():
            layer.forward = partial(frozen_forward, layer, kept, half)  # type: ignore[method-assign]
            undo.callback(delattr, layer, "forward")
        yield


def frozen_layers(model: nn.Module) -> dict[nn.Linear, Frozen]:
    """Return the plain fp32 linear layers that are not trained; none if the memory may not hold them twice."""
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type in ("cpu", "cuda")
        and not any(parameter.requires_grad for parameter in layer.parameters())
    ]
    if not layers or sum(layer.weight.nbytes for layer in layers) > _limit(layers[0].weight.device):
        return {}
    return {layer: Frozen(layer, layer.weight.device.type == "cpu") for layer in layers}


def _limit(device: torch.device) -> int:
    """Return the largest size in bytes of weights that are prepared.

    On a GPU, where they are kept rounded, they may take half of the memory that is free. Training without that would
    need the same memory, because autograd keeps every weight that autocast rounds until the backward pass.
    """
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else LIMIT
