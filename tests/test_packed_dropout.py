"""Dropout without padding: masks of the right share, cheap, and as reproducible as torch's own."""

import math

import pytest
import torch

from lora_drop.training.packing.dropout import dropout_forward, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.013, 0.999])
def test_a_mask_drops_its_share_and_keeps_the_mean(p):
    """The threshold of a mask is one of two, so the share is looked at over many masks."""
    torch.manual_seed(0)
    masks, count = 200, 4000
    drawn = [keep_mask((count,), p) for _ in range(masks)]
    kept, factors = torch.stack([mask for mask, _ in drawn]), {factor for _, factor in drawn}
    p = min(p, 255 / 256)
    error = math.sqrt(p * (1 - p) / kept.numel() + 1 / 256**2 / 4 / masks)
    assert float((kept == 0).float().mean()) == pytest.approx(p, abs=4 * error)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    (factor,) = factors
    assert factor * (1 - p) == pytest.approx(1, rel=1e-12)  # the mean of an element is 1 exactly
    neighbours = torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 4 / math.sqrt(kept.numel())


def test_the_share_of_one_mask_is_within_a_byte_of_it():
    torch.manual_seed(0)
    for p in (0.1, 0.25, 0.7):
        mask, _ = keep_mask((1_000_000,), p)
        assert abs(float((mask == 0).float().mean()) - p) < 1 / 256 + 4 * math.sqrt(p * (1 - p) / 1e6)


def test_masks_follow_torch_seeds_and_differ_from_call_to_call():
    torch.manual_seed(3)
    first, second = keep_mask((100, 7), 0.5)[0], keep_mask((100, 7), 0.5)[0]
    torch.manual_seed(3)
    assert torch.equal(first, keep_mask((100, 7), 0.5)[0]) and not torch.equal(first, second)


def test_the_gradient_of_dropout_has_the_mask_of_its_output():
    x, module = torch.ones(50, 50, requires_grad=True), torch.nn.Dropout(0.3)
    out = dropout_forward(module, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, gradient) and 0 < int((out == 0).sum()) < 2500
    assert torch.equal(dropout_forward(module.eval(), x), x)
