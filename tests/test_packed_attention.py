"""Attention over rows of different lengths against its plain form."""

import math

import pytest
import torch

from lora_drop.training.packing import Layout, Unpackable
from lora_drop.training.packing.attention import GroupedAttention, Scoring, longest_row, varlen_attention


def plain_attention(query, key, value, lengths, scaling, causal, window=None, softcap=None):
    """Row by row, in float64: `tokens heads width`."""
    shared, start, out = query.shape[1] // key.shape[1], 0, []
    for length in lengths:
        part = slice(start, start + length)
        q, k, v = (tensor[part].transpose(0, 1) for tensor in (query, key, value))
        k, v = (tensor.repeat_interleave(shared, 0) for tensor in (k, v))
        scores = q @ k.transpose(1, 2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if causal:
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        if window is not None:
            ahead = torch.arange(length)[:, None] - torch.arange(length)
            scores = scores.masked_fill(ahead.abs() >= window, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat(out)


def layout_of(lengths, reads="all"):
    return Layout((torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long(), None, reads)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 4, 9])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], [9, 8, 8, 3, 2, 1, 1]])
def test_grouped_attention_equals_the_plain_form(causal, key_heads, lengths, window, softcap):
    torch.manual_seed(0)
    heads = (4, key_heads, key_heads)
    given = [torch.randn(sum(lengths), count, 6, dtype=torch.float64, requires_grad=True) for count in heads]
    expected = plain_attention(*given, lengths, 0.3, causal, window, softcap)
    direction = torch.randn_like(expected)
    exact = torch.autograd.grad((expected * direction).sum(), given)
    single = [tensor.detach().float().requires_grad_() for tensor in given]
    scoring = Scoring(0.3, softcap, causal, window)
    out = GroupedAttention.apply(*single, layout_of(lengths), scoring, False)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    for one, two in zip(torch.autograd.grad((out * direction.float()).sum(), single), exact, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize(("reads", "causal"), [("first", False), ("last", True)])
def test_attention_of_the_tokens_that_are_read_alone(reads, causal, window):
    torch.manual_seed(0)
    lengths = [9, 8, 8, 3, 1]
    given = [torch.randn(sum(lengths), heads, 6, requires_grad=True) for heads in (4, 2, 2)]
    layout, scoring = layout_of(lengths, reads), Scoring(0.3, 0.7, causal, window)
    whole = GroupedAttention.apply(*given, layout, scoring, False)
    part = GroupedAttention.apply(*given, layout, scoring, True)
    torch.testing.assert_close(part[layout.read], whole[layout.read])
    for one, two in zip(
        *(torch.autograd.grad(out[layout.read].sin().sum(), given) for out in (part, whole)), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # from what torch does on a CPU
def test_attention_by_the_kernel_of_the_device_equals_the_plain_form():
    torch.manual_seed(0)
    lengths = [6, 4, 3]
    query, key, value = (torch.randn(sum(lengths), heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    out = varlen_attention(query, key, value, layout_of(lengths), Scoring(0.3))
    torch.testing.assert_close(out, plain_attention(query, key, value, lengths, 0.3, False))
    with pytest.raises(Unpackable, match="soft cap, or a window shorter than a row"):
        varlen_attention(query, key, value, layout_of(lengths), Scoring(0.3, window=5))
    torch.testing.assert_close(varlen_attention(query, key, value, layout_of(lengths), Scoring(0.3, window=6)), out)
    assert longest_row(query, Scoring(0.3, window=5)) == 5 and longest_row(query, Scoring(0.3)) is None


def test_rows_padded_on_either_side_are_laid_out():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    layout = Layout(mask, None, "last")
    assert layout.lengths == [3, 2, 1] and (layout.flat // 4).tolist() == [1, 1, 1, 0, 0, 2]
    assert layout.columns.tolist() == [0, 1, 2, 2, 3, 0]
    assert layout.read.tolist() == [4, 2, 5]  # of the batch's rows, in their order
    assert torch.equal(
        Layout(mask, None, "all").restore(layout.flat[None, :, None].double())[..., 0] > 0,
        (mask * torch.arange(12).view(3, 4)) > 0,
    )


def test_attention_weights_are_dropped_at_the_same_rate():
    """With equal scores and values of 1 an output is the kept weights' sum: its mean is 1, its variance p / (1 - p) / length."""
    torch.manual_seed(0)
    length, p = 40, 0.2
    equal = torch.zeros(length * 50, 4, 2)
    out = GroupedAttention.apply(
        equal, equal, torch.ones_like(equal), layout_of([length] * 50), Scoring(1.0, dropout=p), False
    )
    sums = out[..., 0].flatten()
    assert float(sums.mean()) == pytest.approx(1, abs=4 * math.sqrt(p / (1 - p) / length / len(sums)))
    assert float(sums.var()) == pytest.approx(p / (1 - p) / length, rel=0.1)
