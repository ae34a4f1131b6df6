"""Attention over concatenated rows of different lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lora_drop.training.packing.dropout import keep_mask, masked
from lora_drop.training.packing.layout import Group, Layout, Unpackable


@dataclass(frozen=True)
class Scoring:
    """Options of an attention for its scores, in the order in which they are applied."""

    scaling: float
    softcap: float | None = None
    """Scores are bent into the range ± this value."""
    causal: bool = False
    """True if tokens do not see later ones."""
    window: int | None = None
    """Tokens do not see those that are this far away or farther."""
    dropout: float = 0.0
    """Share of the attention weights that is dropped."""


class GroupedAttention(torch.autograd.Function):
    """Attention over the rows of a layout on a CPU, group by group, with batched matrix products.

    Heads of a row that share a key are treated as more queries of that key: one matrix of `shared·length` queries.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scoring: Scoring,
        read_only: bool,
    ) -> Tensor:
        """Return `tokens heads width`, the shape of `query`; `key` and `value` may have fewer heads."""
        p = scoring.dropout
        out = (torch.zeros if read_only else torch.empty)(query.shape, dtype=query.dtype, device=query.device)
        ctx.layout, ctx.scoring, ctx.read_only, ctx.factor = layout, scoring, read_only, None
        ctx.heads = key.shape[1]
        saved = []
        for group in layout.groups:
            q = _gather(query, group, ctx.heads, read_only)
            k, v = (_gather(tensor, group, ctx.heads) for tensor in (key, value))
            scores = _product(q, k.transpose(1, 2), scoring.scaling)
            if scores.dtype == torch.bfloat16:  # softmax in fp32 is more exact, and faster
                scores = scores.float()
            bent = [] if scoring.softcap is None else [scores.div_(scoring.softcap).tanh_()]
            scores = scores if scoring.softcap is None else scores * scoring.softcap
            _hide(scores, group, scoring, read_only)
            weights = torch.softmax(scores, -1).to(q.dtype)
            saved += [q, k, v, weights]
            if p > 0:
                mask, ctx.factor = keep_mask(weights.shape, p, weights.dtype)
                weights = masked(weights, mask, ctx.factor)
                saved.append(mask)
            saved += bent
            _scatter(torch.bmm(weights, v), out, group, read_only)
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients of query, key and value; None for those that are not needed."""
        gradient, layout, heads, read_only = gradients[0].contiguous(), ctx.layout, ctx.heads, ctx.read_only
        saved, wanted = iter(ctx.saved_tensors), ctx.needs_input_grad
        shape = (gradient.shape[0], heads, gradient.shape[2])
        d_query = (torch.zeros_like if read_only else torch.empty_like)(gradient) if wanted[0] else None
        d_key, d_value = (gradient.new_empty(shape) if need else None for need in wanted[1:3])
        for group in layout.groups:
            q, k, v, weights = next(saved), next(saved), next(saved), next(saved)
            mask = None if ctx.factor is None else next(saved)
            bent = next(saved) if ctx.scoring.softcap is not None else None
            outer = _gather(gradient, group, heads, read_only, blank=True)
            if d_value is not None:
                kept = weights if mask is None else masked(weights, mask, ctx.factor)
                _scatter(torch.bmm(kept.transpose(1, 2), outer), d_value, group)
            if d_query is None and d_key is None:
                continue
            inner = torch.bmm(outer, v.transpose(1, 2))
            if mask is not None:
                inner = masked(inner, mask, ctx.factor)
            inner = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
            if bent is not None:
                inner = (inner * (1 - bent * bent)).to(k.dtype)
            if d_query is not None:
                _scatter(_product(inner, k, ctx.scoring.scaling), d_query, group, read_only)
            if d_key is not None:
                _scatter(_product(inner.transpose(1, 2), q, ctx.scoring.scaling), d_key, group)
        return d_query, d_key, d_value, None, None, None


def _product(one: Tensor, two: Tensor, factor: float) -> Tensor:
    """Return `factor` · `one` `two` for batches of matrices, without a separate pass for the factor."""
    unused = one.new_empty(1).expand(one.shape[0], one.shape[1], two.shape[2])
    return torch.baddbmm(unused, one, two, beta=0, alpha=factor)


def _gather(tensor: Tensor, group: Group, matrices: int, read_only: bool = False, blank: bool = False) -> Tensor:
    """Return a group's part of `tokens heads width` as `rows·matrices queries width`.

    The values at padding are arbitrary, as they are never used, or 0 with `blank`.
    """
    _, heads, width = tensor.shape
    part = tensor[group.tokens]
    if read_only:
        return part.index_select(0, group.read).view(group.rows * matrices, -1, width)
    places = group.places(heads)
    rows = part.reshape(-1, width).index_select(0, places.gather)
    if blank and group.padded:
        rows.index_fill_(0, places.empty, 0)
    return rows.view(group.rows * matrices, -1, width)


def _scatter(matrices: Tensor, out: Tensor, group: Group, read_only: bool = False) -> None:
    """Copy `rows·matrices queries width` to the group's positions in `out` (`tokens heads width`)."""
    _, heads, width = out.shape
    part = out[group.tokens]
    if read_only:
        part.index_copy_(0, group.read, matrices.reshape(group.rows, heads, width))
    else:
        rows = matrices.reshape(-1, width)
        torch.index_select(rows, 0, group.places(heads).scatter, out=part.view(-1, width))


def _hide(scores: Tensor, group: Group, scoring: Scoring, read_only: bool) -> None:
    """Mask the scores of padding, of later tokens if causal, and of tokens outside the window."""
    length = group.length
    causal = scoring.causal and not read_only  # with `read_only`, the query is the last token of its row
    if scoring.window is not None and scoring.window < length:
        # finite rather than -inf, because a query at padding may see nothing at all
        hidden = group.outside(scoring.window, causal, read_only)
        scores.view(group.rows, -1, hidden.shape[2], length).masked_fill_(hidden, torch.finfo(scores.dtype).min)
    elif causal:  # padding is later than every real token
        later = torch.full((length, length), -torch.inf).triu_(1)
        scores.view(-1, length, length).add_(later)
    elif group.padded:
        scores.view(group.rows, -1, scores.shape[1], length).add_(group.bias)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Compute attention over rows of different lengths with torch's kernel for the device (used on GPUs).

    Shapes are those of `GroupedAttention`. Raises Unpackable for scores that the kernels do not support: a soft cap, or
    rows longer than `longest_row`.
    """
    limit = longest_row(query, scoring)
    if scoring.softcap is not None or (limit is not None and limit < layout.longest):
        raise Unpackable(
            "its attention has a soft cap, or a window shorter than a row, which this device's kernels have not"
        )
    if _has_flash(query):
        return _flash(query, key, value, layout, scoring)
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    efficient = query.device.type == "cuda" and torch.version.hip is None and query.shape[-1] % 8 == 0
    return (_efficient if efficient else _nested)(query, key, value, layout, scoring)


def longest_row(query: Tensor, scoring: Scoring) -> int | None:
    """Return the most tokens of a row that `varlen_attention` can compute: only flash attention has windows."""
    return None if _has_flash(query) else scoring.window


def _has_flash(query: Tensor) -> bool:
    """Return True if flash attention is available for this device, precision and width (of `tokens heads width`)."""
    device, width = query.device, query.shape[-1]
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and query.dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
    )


def _flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Compute attention with flash attention, through the operator below `scaled_dot_product_attention`.

    Making nested tensors for the latter would take longer than the kernel.
    """
    longest, sides = layout.longest, {}
    if scoring.window is not None and scoring.window < longest:
        reach = scoring.window - 1
        sides = {"window_size_left": reach, "window_size_right": 0 if scoring.causal else reach}
    out: Tensor = torch.ops.aten._flash_attention_forward(
        *(query, key, value),
        *(layout.offsets, layout.offsets, longest, longest),
        *(scoring.dropout, scoring.causal, False),
        scale=scoring.scaling,
        **sides,
    )[0]
    return out


def _efficient(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Compute attention with the efficient operator below `scaled_dot_product_attention`, which supports fp32."""
    out: Tensor = torch.ops.aten._efficient_attention_forward(
        *(tensor.unsqueeze(0) for tensor in (query, key, value)),
        None,
        *(layout.offsets, layout.offsets, layout.longest, layout.longest),
        *(scoring.dropout, int(scoring.causal), torch.is_grad_enabled()),
        scale=scoring.scaling,
    )[0]
    return out[0]


def _nested(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Compute attention over torch's nested tensors."""
    bounds: dict[str, Any] = {"min_seqlen": 0 if layout.fills else layout.lengths[-1], "max_seqlen": layout.longest}
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(tensor, layout.offsets, **bounds).transpose(1, 2)
        for tensor in (query, key, value)
    )
    out = functional.scaled_dot_product_attention(
        q, k, v, dropout_p=scoring.dropout, is_causal=scoring.causal, scale=scoring.scaling
    )
    return out.transpose(1, 2).values()
