"""Attention over rows of different length that lie one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lora_drop.packing.dropout import keep_mask
from lora_drop.packing.layout import Group, Layout


class GroupedAttention(torch.autograd.Function):
    """Attention of the rows of a layout, group by group, with products of batches of matrices: on CPUs."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scaling: float,
        p: float,
        causal: bool,
        read_only: bool,
    ) -> Tensor:
        """Return `tokens heads width` of a `query` of that shape, and `key` and `value`, which may have fewer heads."""
        out = torch.zeros_like(query) if read_only else torch.empty_like(query)
        ctx.layout, ctx.scaling, ctx.read_only, ctx.dropped = layout, scaling, read_only, p > 0
        ctx.shared = query.shape[1] // key.shape[1]
        saved = []
        for group in layout.groups:
            q = _heads(_rows(query, group, read_only), group.rows, ctx.shared) * scaling
            k, v = (_heads(_rows(tensor, group), group.rows, 1) for tensor in (key, value))
            scores = torch.bmm(q, k.transpose(1, 2))
            _hide(scores, group, causal and not read_only)
            weights = torch.softmax(scores, -1)
            mask = [keep_mask(weights.shape, p).to(weights.dtype)] if p > 0 else []
            result = torch.bmm(weights * mask[0] if mask else weights, v)
            _write(out, _tokens(result, group.rows, ctx.shared), group, read_only)
            saved += [q, k, v, weights, *mask]
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of query, key and value, as far as they are wanted."""
        (gradient,) = gradients
        layout, shared, read_only = ctx.layout, ctx.shared, ctx.read_only
        saved = iter(ctx.saved_tensors)
        wanted = ctx.needs_input_grad
        heads = gradient.shape[1] // shared
        shape = (gradient.shape[0], heads, gradient.shape[2])
        d_query = (torch.zeros_like if read_only else torch.empty_like)(gradient) if wanted[0] else None
        d_key, d_value = (gradient.new_empty(shape) if need else None for need in wanted[1:3])
        for group in layout.groups:
            q, k, v, weights = next(saved), next(saved), next(saved), next(saved)
            mask = next(saved) if ctx.dropped else None
            outer = _heads(_rows(gradient, group, read_only, fill=False), group.rows, shared)
            if d_value is not None:
                kept = weights if mask is None else weights * mask
                _write(d_value, _tokens(torch.bmm(kept.transpose(1, 2), outer), group.rows, 1), group)
            if d_query is None and d_key is None:
                continue
            inner = torch.bmm(outer, v.transpose(1, 2))
            if mask is not None:
                inner.mul_(mask)
            inner = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
            if d_query is not None:
                _write(d_query, _tokens(torch.bmm(inner, k).mul_(ctx.scaling), group.rows, shared), group, read_only)
            if d_key is not None:
                _write(d_key, _tokens(torch.bmm(inner.transpose(1, 2), q), group.rows, 1), group)
        return d_query, d_key, d_value, None, None, None, None, None


def _rows(tensor: Tensor, group: Group, read_only: bool = False, fill: bool = True) -> Tensor:
    """Return the tokens of a group as `rows length heads width`, padding filled with a real token (`fill`) or with zeros."""
    part = tensor[group.tokens]
    if read_only:
        part = part.index_select(0, group.read)
    elif group.gather is not None and group.scatter is not None:
        padded = (group.rows * group.length, *part.shape[1:])
        part = (
            part.index_select(0, group.gather) if fill else part.new_zeros(padded).index_copy_(0, group.scatter, part)
        )
    return part.reshape(group.rows, -1, *part.shape[1:])


def _heads(rows: Tensor, count: int, shared: int) -> Tensor:
    """Return `rows length heads width` as one matrix for each row and key head: `rows·heads/shared shared·length width`."""
    _, length, heads, width = rows.shape
    apart = rows.view(count, length, heads // shared, shared, width).permute(0, 2, 3, 1, 4)
    return apart.reshape(count * (heads // shared), shared * length, width)


def _tokens(matrices: Tensor, count: int, shared: int) -> Tensor:
    """Return the inverse of `_heads`, rows joined: `rows·length heads width`."""
    apart = matrices.view(count, -1, shared, matrices.shape[1] // shared, matrices.shape[2]).permute(0, 3, 1, 2, 4)
    return apart.reshape(apart.shape[0] * apart.shape[1], -1, matrices.shape[2])


def _write(out: Tensor, tokens: Tensor, group: Group, read_only: bool = False) -> None:
    """Put the tokens of a group where they belong among all tokens."""
    part = out[group.tokens]
    if read_only:
        part.index_copy_(0, group.read, tokens)
    elif group.scatter is None:
        part.copy_(tokens)
    else:
        torch.index_select(tokens, 0, group.scatter, out=part)


def _hide(scores: Tensor, group: Group, causal: bool) -> None:
    """Let no score count that belongs to padding or, if causal, to a later token. (Padding is later than every real token.)"""
    if causal:
        later = torch.full((group.length, group.length), -torch.inf).triu_(1)
        scores.view(-1, group.length, group.length).add_(later)
    elif group.bias is not None:
        scores.view(group.rows, -1, scores.shape[1], group.length).add_(group.bias)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, p: float, causal: bool
) -> Tensor:
    """Attention of rows of different length by the kernel that torch has for the device: on GPUs. Shapes as in `GroupedAttention`."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    bounds: dict[str, Any] = {"min_seqlen": layout.lengths[-1], "max_seqlen": layout.lengths[0]}
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(tensor, layout.offsets, **bounds).transpose(1, 2)
        for tensor in (query, key, value)
    )
    out = functional.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=causal, scale=scaling)
    values: Tensor = out.transpose(1, 2).values()
    return values
