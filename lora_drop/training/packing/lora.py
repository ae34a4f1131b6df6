"""PEFT's plain LoRA layer without extra passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_drop.training.packing.frozen import Frozen, Half, computable


class _LoraLinear(torch.autograd.Function):
    """W x + b + scaling · B A x for all rows of x, with frozen W and b.

    Products are in the precision of autocast; the parameters A and B stay in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, scaling: float, base: Frozen | nn.Linear, half: Half
    ) -> Tensor:
        ctx.shape, ctx.scaling, ctx.base = x.shape, scaling, base
        x = half(x).flatten(0, -2)
        down, up = down.to(x.dtype), up.to(x.dtype)
        z = functional.linear(x, down)
        y = base.forward(x).addmm_(z, up.T, alpha=scaling)
        ctx.save_for_backward(x, z, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, z, down, up = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        inner = (gradient @ up).mul_(ctx.scaling)
        d_down = inner.T @ x
        d_up = (gradient.T @ z).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            through = ctx.base.backward(gradient) if isinstance(ctx.base, Frozen) else gradient @ ctx.base.weight
            d_x = through.addmm_(inner, down).view(ctx.shape)
        return d_x, d_down, d_up, None, None, None


def lora_forward(layer: Any, adapter: str, base: Frozen | nn.Linear, half: Half, x: Tensor) -> Tensor:
    """Return the output of a plain LoRA layer for `x` (`*batch inputs`). Mixed precisions are left to PEFT's code."""
    if not (computable(x) and (isinstance(base, Frozen) or base.weight.dtype == half.of(x))):
        return type(layer).forward(layer, x)
    down, up, scaling = layer.lora_A[adapter], layer.lora_B[adapter].weight, layer.scaling[adapter]
    # a GPU would wait for Python, so there autograd's own functions are faster
    if torch.is_grad_enabled() and x.device.type == "cpu":
        out: Tensor = _LoraLinear.apply(x, down.weight, up, scaling, base, half)
        return out.view(*x.shape[:-1], -1)
    x = half(x)
    z = down(x).flatten(0, -2)  # call the module: scoring of layers hooks into it to see z
    return base.forward(x.flatten(0, -2)).addmm_(z, up.to(z.dtype).T, alpha=scaling).view(*x.shape[:-1], -1)


def plain_loras(model: nn.Module) -> list[tuple[Any, str]]:
    """Return PEFT's plain LoRA layers, each with the name of its adapter.

    A plain layer computes W x + b + scaling · B A x and nothing else, with A and B in fp32.
    """
    from peft.tuners.lora.layer import Linear

    found = []
    for layer in model.modules():
        if type(layer) is not Linear or len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
            continue
        (adapter,) = layer.active_adapters
        base: Any = layer.base_layer
        if adapter not in layer.lora_A or adapter in layer.lora_variant or type(base) is not nn.Linear:
            continue
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        plain = isinstance(layer.lora_dropout[adapter], nn.Identity) and down.bias is None and up.bias is None
        wide = down.weight.dtype == up.weight.dtype == torch.float32
        if plain and wide and not base.weight.requires_grad:
            found.append((layer, adapter))
    return found
