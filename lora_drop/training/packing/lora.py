"""PEFT's plain LoRA layer without extra passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _LoraLinear(torch.autograd.Function):
    """W x + b + scaling · B A x, with frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        z = functional.linear(x, down)
        y = functional.linear(x, weight, bias)
        y.view(-1, y.shape[-1]).addmm_(z.view(-1, z.shape[-1]), up.T, alpha=scaling)
        ctx.save_for_backward(x, z, weight, down, up)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, z, weight, down, up = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        inner = (gradient @ up).mul_(ctx.scaling)
        d_down = inner.T @ x.reshape(-1, x.shape[-1])
        d_up = (gradient.T @ z.view(-1, z.shape[-1])).mul_(ctx.scaling)
        d_x = torch.mm(gradient, weight).addmm_(inner, down).view_as(x) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_down, d_up, None


def lora_forward(layer: Any, adapter: str, x: Tensor) -> Tensor:
    """Return what a plain LoRA layer returns for `x` (`*batch inputs`); in mixed precision, what it returns itself."""
    if torch.is_autocast_enabled(x.device.type) or x.dtype != torch.float32:
        result: Tensor = type(layer).forward(layer, x)
        return result
    base = layer.base_layer
    down, up, scaling = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    return _LoraLinear.apply(x, base.weight, base.bias, down, up, scaling)


def plain_loras(model: nn.Module) -> list[tuple[Any, str]]:
    """Return PEFT's LoRA layers that compute W x + b + scaling · B A x in fp32 and nothing else, each with the name of its adapter."""
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
        dtypes = {tensor.dtype for tensor in (base.weight, down.weight, up.weight)}
        if plain and dtypes == {torch.float32} and not base.weight.requires_grad:
            found.append((layer, adapter))
    return found
